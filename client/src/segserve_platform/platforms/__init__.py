"""Platforms: this machine and clusters behind one port, independent of the command line."""
