"""`make bench-client`: what the client costs beside raw libraries; see `__main__`."""
