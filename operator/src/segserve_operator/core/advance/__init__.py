"""Rollouts: from the world to a decision on each."""
