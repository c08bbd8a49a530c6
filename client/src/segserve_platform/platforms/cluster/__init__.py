"""The platform of a Kubernetes cluster, through its API server."""
