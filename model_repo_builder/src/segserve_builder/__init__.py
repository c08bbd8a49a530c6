"""Turns a pipeline into a Triton model repository, and is what runs inside Triton."""
