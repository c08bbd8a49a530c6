"""What builder, operator and client share: the KServe v2 codec, Kubernetes, guarded HTTP, files, backoff."""
