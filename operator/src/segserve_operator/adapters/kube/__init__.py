"""The cluster: resources, servers and gateways as objects of the Kubernetes API."""
