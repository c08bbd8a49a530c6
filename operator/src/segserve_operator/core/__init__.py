"""Decisions: pure functions of the observed world. No I/O, no clock, no logging."""
