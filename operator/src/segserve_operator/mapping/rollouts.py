"""Conversion between a rollout's record in the core and its SegmentationRollout."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from segserve_common.canonical import canonical_json
from segserve_operator.api.meta import GROUP_VERSION
from segserve_operator.api.segmentation_rollout import (
    MAX_DECISIONS,
    MESSAGE_MAX_LENGTH,
    DecisionStatus,
    RolloutPhase,
    SegmentationRollout,
    SegmentationRolloutSpec,
    SegmentationRolloutStatus,
    VerdictStatus,
)
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Decision, Record, Row
from segserve_operator.mapping.packed_evidence import (
    ROWS_BYTES,
    UnreadableRecordError,
    chunked_rows,
    pack_inputs,
    pack_rows_within,
    pack_state,
    unpack_inputs,
    unpack_rows,
    unpack_state,
)
from segserve_operator.mapping.reading import read_rollout

OBJECT_BYTES: Final = 512 * 1024
"""No record is larger, whatever a rollout sees: an API server takes 1.5 MiB, and each write is of the whole."""
HISTORY: Final = 10
"""Number of records of former rollouts that are kept for each model."""
_SEEN_BYTES: Final = 256 * 1024


def spec_of(record: Record) -> dict[str, Any]:
    """Return the spec of a record, as JSON."""
    return SegmentationRolloutSpec(
        model=record.model, stable=record.stable, candidate=record.candidate, policy=record.policy, slo=record.slo
    ).to_dict()


def manifest_of(record: Record) -> dict[str, Any]:
    """Return a record's manifest without its status."""
    return {
        "apiVersion": GROUP_VERSION,
        "kind": SegmentationRollout.__name__,
        "metadata": {"name": record.name},
        "spec": spec_of(record),
    }


def status_of(record: Record, now: datetime) -> dict[str, Any]:
    """Return the status of a record, as JSON; the oldest rows are stored separately (`packed_evidence.chunks`)."""
    progress, last = record.progress, record.decisions[-1] if record.decisions else None
    apart = chunked_rows(len(record.rows))
    status = SegmentationRolloutStatus(
        sequence=record.sequence,
        phase=_label(Phase(int(progress.phase))),
        weight=last.weight if last is not None else 0,
        reason=(last.reason or None) if last is not None else None,
        message=_cut(last.message) if last is not None else None,
        step=int(progress.step),
        paused=bool(progress.paused),
        quarantines=int(progress.quarantines),
        started_at=_time(float(progress.started_s)),
        written_at=now,
        verdicts=tuple(
            VerdictStatus(
                gate=verdict.gate,
                outcome=verdict.outcome.value,
                reason=_cut(verdict.reason),
                message=_cut(verdict.message),
                progress=min(max(float(verdict.progress), 0.0), 1.0),
                numbers={name: repr(float(number)) for name, number in verdict.numbers.items()},
            )
            for verdict in record.verdicts
        ),
        rows=len(record.rows),
        chunked_rows=apart,
        evidence=pack_rows_within(record.rows[apart:], ROWS_BYTES),
        state=pack_state(record),
    )
    room = OBJECT_BYTES - len(canonical_json({**manifest_of(record), "status": status.to_dict()}))
    return status.model_copy(update={"decisions": _decision_statuses(record.decisions, room)}).to_dict()


def record_of(manifest: Mapping[str, Any], apart: tuple[Row, ...]) -> Record:
    """Return the record of a SegmentationRollout; `apart` are its older rows, none if they are lost.

    Raises `UnreadableRecordError` if segserve did not write it.
    """
    name = str(manifest["metadata"]["name"])
    try:
        rollout = read_rollout(manifest)
        spec, status = rollout.spec, rollout.status
        if status.state is None or status.evidence is None:
            raise ValueError("it has no state yet")
        return Record(
            name=name,
            model=spec.model,
            stable=spec.stable,
            candidate=spec.candidate,
            policy=spec.policy,
            slo=spec.slo,
            sequence=status.sequence,
            rows=(*apart, *unpack_rows(status.evidence)),
            decisions=tuple(_decision(decision) for decision in status.decisions),
            **unpack_state(status.state, spec.policy, spec.slo),
        )
    except ValueError as error:
        raise UnreadableRecordError(name, str(error)) from error


def _decision_statuses(decisions: tuple[Decision, ...], room: int) -> tuple[DecisionStatus, ...]:
    """Return the newest decisions that fit; the inputs of the oldest are dropped first."""
    statuses: list[DecisionStatus] = []
    room_of_seen = _SEEN_BYTES
    for decision in reversed(decisions[-MAX_DECISIONS:]):
        brief, inputs = _decision_status(decision), pack_inputs(decision)
        size, inputs_size = (len(canonical_json(value)) + 1 for value in (brief.to_dict(), {"inputs": inputs}))
        if room < size:
            break
        room -= size
        if inputs_size < min(room, room_of_seen):
            room, room_of_seen = room - inputs_size, room_of_seen - inputs_size
            brief = brief.model_copy(update={"inputs": inputs})
        statuses.append(brief)
    return tuple(reversed(statuses))


def _decision_status(decision: Decision) -> DecisionStatus:
    return DecisionStatus(
        sequence=decision.sequence,
        at=_time(decision.at_s),
        at_seconds=decision.at_s,
        signal=decision.signal,
        phase=_label(decision.phase),
        weight=decision.weight,
        actor=_cut(decision.actor),
        reason=_cut(decision.reason),
        message=_cut(decision.message),
    )


def _decision(status: DecisionStatus) -> Decision:
    return Decision(
        sequence=status.sequence,
        at_s=status.at_seconds,
        signal=status.signal,
        phase=Phase.labelled(status.phase),
        weight=status.weight,
        actor=status.actor,
        reason=status.reason,
        message=status.message,
        **(unpack_inputs(status.inputs) if status.inputs is not None else {}),
    )


def _label(phase: Phase) -> RolloutPhase:
    return RolloutPhase(phase.label)


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_MAX_LENGTH else f"{text[: MESSAGE_MAX_LENGTH - 3]}..."


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
