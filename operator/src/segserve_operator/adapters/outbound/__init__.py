"""Requests to tenants' services, made by a worker: a process without the operator's token, memory and environment."""
