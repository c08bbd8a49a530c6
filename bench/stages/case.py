"""Measurements of stages: an input, our call, and peers that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """Another implementation of the same computation.

    `run` does the work once; if it does so in another process, it returns the seconds taken there. `agrees` compares
    the results before anything is measured: it returns a description of how equal they are, and raises
    `AssertionError` if they differ too much. `goal` is the ratio of times, peer / ours, to reach; None for no goal.
    """

    name: str
    version: str
    run: Callable[[], object]
    agrees: Callable[[], str]
    goal: float | None = None


@dataclass(frozen=True)
class Case:
    """One input of one stage. `ours` does the work once; `worst` marks an input that is meant to be the worst case."""

    name: str
    ours: Callable[[], object]
    peers: tuple[Peer, ...]
    worst: bool = False
