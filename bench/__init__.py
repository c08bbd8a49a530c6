"""Measurements beside named peers; every one checks correctness first."""
