"""The reason for a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

UNKNOWN_FIELD: Final = "UnknownField"
HOST_PATH_REFUSED: Final = "HostPathRefused"
"""The reason if a spec has fields that only a newer release knows."""
STATUS_UNREADABLE: Final = "StatusUnreadable"
FILE_DAMAGED: Final = "FileDamaged"
"""The reason if the roles in a model's status cannot be read."""

MAX_MESSAGE: Final = 2048
"""Longest message in a status, in characters: others write many of them, such as the scheduler and Triton."""


def shortened(message: str) -> str:
    """Return a message that is short enough for a status."""
    return message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 3]}..."


@dataclass(frozen=True, slots=True)
class FailureReason:
    """Reason as one CamelCase word, and a message with what was found and what is allowed; a long one is cut."""

    reason: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", shortened(self.message))
