"""The reason for a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

UNKNOWN_FIELD: Final = "UnknownField"
"""The reason if a spec has fields that only a newer release knows."""


@dataclass(frozen=True, slots=True)
class FailureReason:
    """Reason as one CamelCase word, and a message with what was found and what is allowed."""

    reason: str
    message: str
