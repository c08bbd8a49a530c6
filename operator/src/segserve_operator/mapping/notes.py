"""A revision's note as labels and an annotation of its ControllerRevision, and a rollout's outcome as labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast, get_args

from segserve_common.canonical import canonical_json
from segserve_common.kube.names import ROLE_ANNOTATION, ROLE_LABEL
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.world.restore import RevisionNote, RoleName

_MESSAGE_LENGTH: Final = 1024


def metadata_of(note: RevisionNote) -> dict[str, dict[str, str]]:
    """Return the label and the annotation that hold a note."""
    plain: dict[str, Any] = {"since": datetime.fromtimestamp(note.since_s, UTC).isoformat()}
    if note.group:
        plain["group"] = note.group
    if note.failure is not None:
        plain |= {"reason": note.failure.reason, "message": note.failure.message[:_MESSAGE_LENGTH]}
    if note.handled:
        plain["handled"] = list(note.handled)
    return {"labels": {ROLE_LABEL: note.role}, "annotations": {ROLE_ANNOTATION: canonical_json(plain)}}


def note_of(metadata: Mapping[str, Any]) -> RevisionNote | None:
    """Return the note in an object's metadata, None without a readable one."""
    role = (metadata.get("labels") or {}).get(ROLE_LABEL)
    text = (metadata.get("annotations") or {}).get(ROLE_ANNOTATION)
    if role not in get_args(RoleName) or text is None:
        return None
    try:
        plain = json.loads(text)
        reason = plain.get("reason")
        return RevisionNote(
            role=cast("RoleName", role),
            since_s=datetime.fromisoformat(plain["since"]).timestamp(),
            group=str(plain.get("group", "")),
            failure=FailureReason(str(reason), str(plain.get("message", ""))) if reason else None,
            handled=tuple(map(str, plain.get("handled", ()))),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def outcome_of(record: Record) -> str:
    """Return how a rollout ended, as a label's value such as RolledBack or Succeeded; empty while it goes on."""
    phase = Phase(int(record.progress.phase))
    return phase.label if phase in ENDED else ""
