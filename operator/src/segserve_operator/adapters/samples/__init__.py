"""Samples of request counts from gateways in other pods: directly, or through Prometheus."""
