"""The values that a guess is made of: the user's overrides, choices with their reasons, trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Place: TypeAlias = tuple[str | int, ...]
"""A path within a resource: `("spec", "classes")`."""
StageOptions: TypeAlias = Mapping[str, Any]
Progress: TypeAlias = Callable[[str], None]
"""Told what is being tried: "normalisation 2 of 4"."""


def no_progress(_: str) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Remark:
    """A comment on the field at `place`; one that is not `sure` is also listed for the user to check.

    Lines of `text` stay lines.
    """

    place: Place
    text: str
    sure: bool = True


@dataclass(frozen=True)
class Overrides:
    """The user's own statements about the network; None is guessed."""

    family: str | None = None
    classes: str | None = None


@dataclass(frozen=True)
class Choice:
    """Stages of a pipeline and the reason for them; None if they are still to be determined by trials."""

    steps: tuple[StageOptions, ...] | None
    remark: Remark


@dataclass(frozen=True)
class Trial:
    """The result of one way of preparing images: 0 (nothing found, or by chance) to 1 (sure, and the same mirrored)."""

    name: str
    score: float
