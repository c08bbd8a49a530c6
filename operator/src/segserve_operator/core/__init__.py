"""Decisions: pure functions of what was observed. No I/O, no clock, no logging."""
