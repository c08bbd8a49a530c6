"""Compiled inner loops. Importing a module compiles it, or loads what an earlier process compiled."""
