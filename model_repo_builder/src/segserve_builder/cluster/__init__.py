"""The processes of a server pod in Kubernetes: the agent with its link to the API, and the launcher of Triton."""
