"""What of segserve_builder runs in a Kubernetes cluster only: the agent's link to the API, the start of Triton."""
