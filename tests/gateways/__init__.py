"""Real gateways before real replicas, with the configurations of ``deploy/gateway``."""
