"""Keeps one Triton equal to its group's assignment, and reports what it proved."""
