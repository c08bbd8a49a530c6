"""A rollout of coins in the middle of its way, and what its model's resource says of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo, Tolerance
from segserve_operator.api.segmentation_model import SegmentationModelStatus
from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.decisions import Rules
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.forecast import Forecast, forecast
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Decision, Record, RolloutState, Row, window_of
from segserve_operator.core.world.observed import Candidate, ModelStatus, RoleHolder, Roles
from segserve_operator.mapping.rollouts import manifest_of, status_of
from segserve_operator.mapping.statuses import to_api
from segserve_platform.cli.rollout.render import RolloutTree
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.rollouts.rollout_view import RolloutView

STABLE, CANDIDATE = "coins-f3ce7142e5", "coins-8d6f11d641"
NAME = "coins-8d6f11d641-1"
WIDTH = 158
STARTED_S = 1_790_000_000.0
GOLDEN = Verdict(
    "goldenQuality",
    Outcome.PASS,
    "NoWorse",
    "mean quality changes by +0.0012 on 64 images (-0.0100 is tolerated)",
    0.0,
    {"images": 64.0, "iou": 0.9814, "meanChange": 0.0012},
)
POLICY = RolloutPolicy(max_bad_requests=20, tolerance=Tolerance(error_percent=0.2, slow_percent=1))
"""Strict, so that the requests of a few minutes do not suffice for the next weight."""
REASON, MESSAGE = "HarmNotBounded", "at the next weight it could still do more harm than maxBadRequests allows"


def record(started_s: float = STARTED_S, *, slo: Slo | None = None, **changes: Any) -> Record:
    """Return the record of a rollout that began at `started_s`, and is at its second step of three."""
    progress = replace(
        Progress.begun(started_s),
        phase=np.array(Phase.PROGRESSING, np.int8),
        step=np.array(1, np.int8),
        since_s=np.array(started_s + 41),
        step_since_s=np.array(started_s + 133),
        stable_answered_s=np.array(started_s + 270),
        seen=np.array(1350.0),
        rate=np.array(40.0),
    )
    asked = (
        (0, "NONE", Phase.PENDING, 0, "Proving", "its servers are loading and proving it"),
        (
            29,
            "PROVED",
            Phase.GOLDEN,
            0,
            "Proved",
            "its servers have loaded and proved it, and every gateway knows them",
        ),
        (41, "GOLDEN_PASSED", Phase.PROGRESSING, 5, "GoldenPassed", "the golden images were answered well enough"),
        (133, "ADVANCE", Phase.PROGRESSING, 25, "StepDone", "the evidence allows the next weight"),
    )
    decisions = tuple(
        Decision(number, started_s + after, signal, phase, weight, "segserve", reason, message)
        for number, (after, signal, phase, weight, reason, message) in enumerate(asked, start=1)
    )
    found = Record(NAME, "coins", STABLE, CANDIDATE, POLICY, slo or Slo(), progress)
    rows = _rows(started_s)
    gates = _gates(found.policy, found.slo)
    verdicts = (*Rules.of(found.policy, found.slo).explain(gates), GOLDEN)
    found = replace(found, sequence=4, rows=rows, decisions=decisions, gates=gates, verdicts=verdicts)
    return replace(found, **changes)


@cache
def _gates(policy: RolloutPolicy, slo: Slo) -> dict[str, Any]:
    """Return the states of the gates after all rows."""
    gates = Rules.of(policy, slo).gates
    states = {name: gate.start() for name, gate in gates.items()}
    for row in _rows(STARTED_S):
        window = window_of(row, len(EDGES_MS) + 1)
        states = {name: gate.update(states[name], window) for name, gate in gates.items()}
    return states


def _rows(started_s: float) -> tuple[Row, ...]:
    """Return looks of 15 s at weight 0, 5 and 25; a candidate's answer takes 25 to 100 ms, as stable's does."""
    found = []
    for number in range(18):
        at_s = 15.0 * (number + 1)
        weight = 0 if at_s < 45 else 5 if at_s < 135 else 25
        new = 600 * weight // 100
        found.append(
            Row(
                started_s + at_s,
                15.0,
                weight,
                (600 - new, new),
                (number % 3 == 0, number == 16),
                (_spread(600 - new, 34), _spread(new, 35)),
            )
        )
    return tuple(found)


def _spread(requests: int, first: int) -> tuple[tuple[int, int], ...]:
    shares = (0.3, 0.25, 0.2, 0.1, 0.06, 0.04, 0.03, 0.02)
    return tuple((first + 2 * number, int(requests * share)) for number, share in enumerate(shares))


def standing(found: Record | None = None, **changes: Any) -> RolloutState:
    """Return where the rollout of a record stands."""
    found = record() if found is None else found
    progress = found.progress
    at = RolloutState(
        rollout=found.name,
        revision=found.candidate,
        phase=Phase(int(progress.phase)),
        step=int(progress.step),
        sequence=found.sequence,
        started_s=float(progress.started_s),
        since_s=float(progress.since_s),
        step_since_s=float(progress.step_since_s),
        resumed_s=float(progress.resumed_s),
        weight=25,
        reason=REASON,
        message=MESSAGE,
    )
    return replace(at, **changes)


def manifest(found: Record) -> dict[str, Any]:
    """Return the resource that keeps a record."""
    return {**manifest_of(found), "status": status_of(found, datetime.now(UTC))}


def coins(at: RolloutState | None, roles: Roles | None = None, *, generation: int = 1, **spec: Any) -> dict[str, Any]:
    """Return the model's resource, whose status says that its rollout stands so, and was told of `generation`."""
    known = ModelStatus(observed_generation=1, roles=roles or roles_of(at), rollout=at, weight=weight_of(at))
    status = to_api(known, SegmentationModelStatus(), datetime.now(UTC)).to_dict()
    metadata = {"name": "coins", "generation": generation, "creationTimestamp": "2026-01-01T00:00:00Z", "uid": "u"}
    return {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": metadata,
        "spec": {"pool": "default", "rollout": {"strategy": "canary"}} | spec,
        "status": status,
    }


def weight_of(at: RolloutState | None) -> int:
    """Return the weight of the newest revision that goes with where a rollout stands."""
    return 100 if at is None or at.phase in (Phase.SUCCEEDED, Phase.CANCELLED) else 0 if at.ended else at.weight


def roles_of(at: RolloutState | None) -> Roles:
    """Return the roles that go with where a rollout stands."""
    old, new = (RoleHolder(revision, f"group-{revision}", STARTED_S) for revision in (STABLE, CANDIDATE))
    if at is None:
        return Roles(stable=old)
    match at.phase:
        case Phase.BAKING | Phase.SUCCEEDED:
            return Roles(stable=new, previous=old)
        case Phase.ROLLED_BACK:
            return Roles(
                stable=old, candidate=Candidate(CANDIDATE, None, STARTED_S, FailureReason("NoProof", "it fails"))
            )
        case Phase.CANCELLED:
            return Roles(stable=old)
        case _:
            return Roles(stable=old, candidate=Candidate(CANDIDATE, new.group, STARTED_S))


def seen(**changes: Any) -> RolloutView:
    """Return the rollout as it is 270 s after its beginning."""
    found = record()
    at = changes.get("standing", standing(found))
    view = RolloutView("coins", at, STABLE, found, STARTED_S + 270, Present.of(coins(at)))
    return replace(view, **changes)


def outlook() -> Forecast:
    """Return the forecast that goes with `seen`."""
    return forecast(record(), (), STARTED_S + 270)


def main(path: Path) -> None:
    """Write the picture that the documentation shows."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print("[dim]$[/] segserve rollout status coins -w", highlight=False)
    console.print(RolloutTree(seen(), outlook()))
    console.save_svg(str(path), title="segserve rollout status", unique_id="rollout")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
