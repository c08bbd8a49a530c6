"""Copies of callers' requests: how they arrive, are sent on, and are read by a worker."""
