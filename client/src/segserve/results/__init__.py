"""Typed results of requests, one class per task, and their masks, outlines and images."""
