"""The `segserve` command."""
