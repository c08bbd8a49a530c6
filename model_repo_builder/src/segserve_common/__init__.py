"""Shared by builder, operator and client: the KServe v2 codec, Kubernetes, guarded HTTP, files, backoff."""
