"""A rollout as JSON, and its forecast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.rollout.forecast import Forecast, forecast
from segserve_operator.core.rollout.record import Decision, Record
from segserve_platform.platforms.port import Json
from segserve_platform.platforms.rollouts.rollout_view import RolloutView, Side


def forecast_of(view: RolloutView) -> Forecast | None:
    """Return the forecast of a rollout; None without a record, or after the end."""
    record, standing = view.record, view.standing
    return None if record is None or standing.ended else forecast(record, standing.skipped, view.now_s)


def document(view: RolloutView) -> Json:
    """Return a rollout as JSON: camelCase, times in RFC 3339, unknown values left out."""
    at, record = view.standing, view.record
    content: Json = {
        "rollout": at.rollout,
        "model": view.model,
        "phase": at.phase.label,
        "ended": at.ended,
        "step": at.step + 1,
        "weight": view.weight,
        "paused": at.paused,
        "quarantines": at.quarantines,
        "reason": at.reason,
        "message": at.message,
        "startedAt": stamp(at.started_s),
        "since": stamp(at.since_s),
        "skippedGates": list(at.skipped),
        "behindTheSpec": view.behind,
        "revisions": [_side(side) for side in view.sides()],
    }
    return content if record is None else content | _recorded(record, at.undecided_since_s)


def _recorded(record: Record, undecided_since_s: float) -> Json:
    return {
        "steps": len(record.policy.steps),
        "deadlineAt": stamp(undecided_since_s + record.policy.deadline.total_seconds()),
        "gates": [_verdict(verdict) for verdict in record.verdicts],
        "decisions": [decision_document(decision) for decision in record.decisions],
    }


def _side(side: Side) -> Json:
    numbers = {
        "errorPercent": side.error_percent,
        "p50Milliseconds": side.quantile_ms(0.5),
        "p95Milliseconds": side.quantile_ms(0.95),
    }
    counted = {"weight": side.weight, "requests": side.requests, "errors": side.errors}
    return {"role": side.role, "revision": side.revision, **counted, **finite(numbers)}


def _verdict(verdict: Verdict) -> Json:
    content = {"gate": verdict.gate, "outcome": verdict.outcome.value}
    content |= {"reason": verdict.reason, "message": verdict.message}
    return {**content, **finite({"progress": verdict.progress}), "numbers": finite(verdict.numbers)}


def decision_document(decision: Decision) -> Json:
    """Return a decision as JSON, without its evidence."""
    return {
        "sequence": decision.sequence,
        "at": stamp(decision.at_s),
        "signal": decision.signal,
        "phase": decision.phase.label,
        "weight": decision.weight,
        "actor": decision.actor,
        "reason": decision.reason,
        "message": decision.message,
    }


def finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Return the finite numbers, which JSON can hold."""
    return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}


def stamp(time_s: float) -> str:
    """Return a time in RFC 3339."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
