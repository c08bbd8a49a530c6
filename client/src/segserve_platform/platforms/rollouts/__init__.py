"""Rollouts: their view, and the actions of a user on them."""
