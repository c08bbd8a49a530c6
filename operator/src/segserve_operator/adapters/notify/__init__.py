"""Notifications of rollouts: HTTP POSTs in the background."""
