"""What keeps an check from finding anything out."""

from __future__ import annotations


class CheckError(Exception):
    """Nothing could be found out; the text says what was seen and what is allowed. It is no verdict."""
