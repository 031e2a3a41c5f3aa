"""The edge: listeners, the gate to the backend, health, the status of errors, the metrics port."""
