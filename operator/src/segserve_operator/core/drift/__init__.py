"""Drift: whether a model's images and answers are still those of its reference."""
