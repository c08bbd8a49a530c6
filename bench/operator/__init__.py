"""What the operator costs: against a real API server, whose servers and gateways are simulated."""
