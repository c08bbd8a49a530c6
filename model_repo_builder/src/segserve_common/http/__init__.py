"""Guarded HTTP: requests to URLs of users reach only addresses that are allowed."""
