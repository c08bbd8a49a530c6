"""Views of a cluster for the command line."""
