"""Compiled inner loops. Importing a module of this package compiles it, or loads what an earlier process compiled."""
