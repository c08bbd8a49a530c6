"""Checks that adapters run for a rollout, and their results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from segserve_operator.api.rollout_policy import CheckedGateSpec

Purpose: TypeAlias = Literal["probe", "check"]
Pair: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Check:
    """One check, identified by its key; it runs once, or every `interval_s` seconds.

    A check that is still running when it is due again is not started twice: it continues, and its result counts.

    probe: send both groups the built-in image repeatedly for `seconds`, while quarantined.
    check: whatever the gate `gate` needs (resource, webhook, promql).

    `spec` is the gate that the check is for; `phase` and `weight` (percent) are passed to webhooks.
    """

    key: str
    model: str
    purpose: Purpose
    stable_group: str
    stable: str
    candidate_group: str
    candidate: str
    gate: str = ""
    seconds: float = 0.0
    interval_s: float = math.inf
    spec: CheckedGateSpec | None = None
    phase: str = ""
    weight: int = 0

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Group and revision, of stable and of the candidate."""
        return (self.stable_group, self.stable), (self.candidate_group, self.candidate)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of both revisions on the same golden set, 0 to 1, as (candidate, stable).

    `paired` has the score of each image that stable answered, in an order independent of their content, with 0 for one
    that the candidate did not answer; of a large set the first ones. `slices` says where each of them comes from, "" if
    the set does not; it is empty if no image has a slice. `classes` has the score of each class by name, `means` each
    metric: `iou`, with masks `boundaryIou`, `recall` and, for objects with scores, `ap` and `ece`. If stable answered
    nothing, its scores are NaN and `paired` is empty. `labelled` is False if an image has no labels, so that its
    expected answer stands in for them: the scores then measure agreement with it. `images_left_out` and
    `classes_left_out` are the numbers of those beyond what a server reports one by one, `at_limit` the number of the
    candidate's answers that reached the limit of objects.
    """

    paired: tuple[Pair, ...] = ()
    classes: Mapping[str, Pair] = field(default_factory=dict)
    means: Mapping[str, Pair] = field(default_factory=dict)
    labelled: bool = True
    slices: tuple[str, ...] = ()
    images_left_out: int = 0
    classes_left_out: int = 0
    at_limit: int = 0


@dataclass(frozen=True, slots=True)
class ResourceSample:
    """Resource usage of a group's servers, by server. A quantity that cannot be measured is absent.

    `memory_bytes` is resident memory, `restarts` the number of restarts of a server's process; `queued_s` and
    `requests` count since the servers started: seconds that requests waited in Triton, and their number.
    """

    memory_bytes: Mapping[str, float] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)
    queued_s: float | None = None
    requests: float | None = None


@dataclass(frozen=True, slots=True)
class ResourceSamples:
    """Samples of the candidate's servers: the first that was taken, and then the latest, oldest first."""

    samples: tuple[ResourceSample, ...]


@dataclass(frozen=True, slots=True)
class ProbeCounts:
    """Our own requests to (stable, candidate); `done` unless the same run will report more."""

    asked: tuple[int, int]
    failed: tuple[int, int]
    done: bool = True


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The status of a user's service."""

    status: int


@dataclass(frozen=True, slots=True)
class QueryRange:
    """The smallest and the largest number of a query's result."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """Why a check has no result, which is not a verdict."""

    problem: str


CheckResult: TypeAlias = Scores | ResourceSamples | ProbeCounts | ServiceStatus | QueryRange | FailedCheck


class CheckError(Exception):
    """A check without a result; the text says why. That is not a verdict."""
