"""Tests that are valid at every look: evidence as e-values, whose product may be looked at as often as one likes."""
