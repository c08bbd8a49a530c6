"""What is said of a field: why it is as it is, or that nobody but the user can know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Place: TypeAlias = tuple[str | int, ...]
"""Where in a resource: `("spec", "classes")`."""


@dataclass(frozen=True)
class Remark:
    """A comment on the field at `place`; one that is not `sure` is also listed for the user to check."""

    place: Place
    text: str
    sure: bool = True
