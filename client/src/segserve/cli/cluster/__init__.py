"""A cluster, as the command line sees it through the API server."""
