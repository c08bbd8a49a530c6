"""Conversion between the API's types and the core's values. Pure: no I/O."""
