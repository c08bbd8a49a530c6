"""The platform on one machine: files as resources, processes as servers."""
