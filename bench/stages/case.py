"""What a measurement of a stage is: our call, and the peers that do the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Peer:
    """Another way to the same answer.

    `run` does the work once; where that is in another process it returns the seconds that it took there. `agrees`
    compares the answers before anything is measured: it says how equal they are, and raises `AssertionError` where
    they are not. `goal` is the ratio peer / ours that we mean to reach, None where there is none.
    """

    name: str
    version: str
    run: Callable[[], object]
    agrees: Callable[[], str]
    goal: float | None = None


@dataclass(frozen=True)
class Case:
    """One input of one stage. `ours` does the work once; `worst` marks an input that is meant to be hard."""

    name: str
    ours: Callable[[], object]
    peers: tuple[Peer, ...]
    worst: bool = False
