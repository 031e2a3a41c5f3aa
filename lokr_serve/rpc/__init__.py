"""The edge: gRPC servicers, the status of errors, health, and the metrics port."""
