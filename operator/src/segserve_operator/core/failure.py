"""Why something cannot go on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FailureReason:
    """One CamelCase word, and a text that says what was seen and what is allowed."""

    reason: str
    message: str
