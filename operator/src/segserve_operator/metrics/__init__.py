"""Prometheus metrics of the operator: a file a subject, and their registry."""
