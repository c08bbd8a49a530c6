"""Copies of callers' requests: how they come, are asked, and are read by a worker."""
