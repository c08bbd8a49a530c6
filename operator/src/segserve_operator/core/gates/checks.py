"""What a rollout has to find out by asking: orders for adapters, and what came of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_builder.agent.protocol import AssignedModel
    from segserve_operator.api.rollout_policy import Gate

Purpose: TypeAlias = Literal["golden", "probe", "check"]
Pair: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to find out, known by its key: asked once, or anew every `every_s` after it was begun.

    What is due while it is still under way is not begun twice: its answer counts, and the next time is waited for.

    golden: replay the labelled images through the internal listener to both groups, and score the answers.
    probe: ask both groups the golden images (or the built-in one), over and over for `seconds`, while quarantined.
    check: what the gate `gate` of another kind asks (resource, webhook, promql).

    `revision` is the record of the candidate: its golden images and its classes are those that are asked. `spec` is the
    gate that a check is for; `phase` and `weight` (percent) are told to webhooks.
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
    every_s: float = math.inf
    revision: AssignedModel | None = None
    spec: Gate | None = None
    phase: str = ""
    weight: int = 0

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Group and revision, of stable and of the candidate."""
        return (self.stable_group, self.stable), (self.candidate_group, self.candidate)


@dataclass(frozen=True, slots=True)
class Scores:
    """Quality of both revisions on the golden images that both answered, 0 to 1, as (candidate, stable).

    `paired` has the quality of each image, in an order that says nothing of their content. `classes` has each class's
    by name, `means` each metric's: `iou`, `recall` and, of objects with scores, `ap`. Where stable answered nothing,
    its numbers are NaN and `paired` is empty. `labelled` is False where an image has no labels, and its expected answer
    stood in for them: then the numbers say how well the answers agree with it.
    """

    paired: tuple[Pair, ...] = ()
    classes: Mapping[str, Pair] = field(default_factory=dict)
    means: Mapping[str, Pair] = field(default_factory=dict)
    labelled: bool = True


@dataclass(frozen=True, slots=True)
class ResourceSample:
    """What a group's servers use, by server. What cannot be measured is absent.

    `memory_bytes` is resident memory, `restarts` how often a server's process was started again; `queued_s` and
    `requests` count since the servers started: the time that requests waited in Triton, and how many there were.
    """

    memory_bytes: Mapping[str, float] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)
    queued_s: float | None = None
    requests: float | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What came of an check, at `at_s` (Unix time); `done` when no more will come, but for what is asked anew.

    `asked` and `failed` count our own requests to (stable, candidate). `samples` are of the candidate's servers: the
    first since they are looked at, and then the latest, oldest first. `passes` and `breaches` are what a gate's
    expressions say, `shown` what they were said of. A `problem` says why nothing could be found out, which is no
    verdict.
    """

    key: str
    at_s: float
    done: bool = True
    asked: tuple[int, int] = (0, 0)
    failed: tuple[int, int] = (0, 0)
    scores: Scores | None = None
    samples: tuple[ResourceSample, ...] = ()
    passes: bool | None = None
    breaches: bool | None = None
    shown: str = ""
    problem: str = ""
