"""The error of checks, below everything that raises it."""

from __future__ import annotations


class CheckError(Exception):
    """A check without a result; the text says why. That is not a verdict."""
