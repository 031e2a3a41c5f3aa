"""Messages of the wire to the types of the server, and back."""
