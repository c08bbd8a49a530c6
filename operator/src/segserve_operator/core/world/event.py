"""One event of a model or a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Event:
    """One Kubernetes event; `reason` is one CamelCase word. Equal events are merged."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str
