"""The services themselves, and what their methods do for each request."""
