"""The reason for a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HOST_PATH_REFUSED: Final = "HostPathRefused"
STATUS_UNREADABLE: Final = "StatusUnreadable"
"""The reason if the roles in a model's status cannot be read."""
FILE_DAMAGED: Final = "FileDamaged"

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
