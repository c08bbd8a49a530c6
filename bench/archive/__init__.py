"""Measurements behind figures of the documentation that a release does not repeat: kept to be read, not maintained."""
