"""Tells people of rollouts: HTTP POSTs in the background."""
