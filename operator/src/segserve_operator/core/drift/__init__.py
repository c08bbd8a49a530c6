"""Drift: whether a model's images and answers still match its reference."""
