"""Checks of rollouts: one file for each kind, their registry, and the runner in the background."""
