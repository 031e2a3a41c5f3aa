"""Who may call, what each caller may take, and how many may wait."""
