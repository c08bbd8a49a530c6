"""A cluster, seen through its API server."""
