"""Anytime-valid tests: evidence as e-values, whose product may be inspected as often as one likes."""
