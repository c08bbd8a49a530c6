"""Renders a pipeline as a Triton model repository, publishes it, and starts Triton on it."""
