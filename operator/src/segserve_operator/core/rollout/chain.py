"""Decisions of a record chained by digest: each has the digest of the former, so that none can be changed unnoticed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final, TypeAlias

from segserve_common.canonical import canonical_json, json_digest
from segserve_operator.api.segmentation_rollout import MAX_DECISIONS, MESSAGE_MAX_LENGTH
from segserve_operator.core.rollout.record import Decision, Record

UNSEALED: Final = "-"
"""In place of a digest or signature that a stored decision lacks: nobody may seal it any more."""
SEALED_SINCE: Final = "0.1.0"
"""The release whose decisions have digests."""
_DIGITS: Final = 64

Sign: TypeAlias = Callable[[str], str]
"""Returns the signature of a digest."""
Check: TypeAlias = Callable[[str, str], bool]
"""Returns whether a digest has this signature."""


def sealed(record: Record, sign: Sign | None = None) -> tuple[Decision, ...]:
    """Return the decisions with digests, and with signatures if there is a key.

    Only decisions of this process are sealed: those that were read keep what they have, for they may have been changed.
    """
    former, decisions = _genesis(record), []
    for decision in record.decisions:
        if not decision.digest:
            bare = replace(decision, previous=former, inputs_digest=_inputs_digest(decision))
            decision = replace(bare, digest=_digest(bare))
        if not decision.signature and sign is not None:
            decision = replace(decision, signature=sign(decision.digest))
        decisions.append(decision)
        former = decision.digest
    return tuple(decisions)


def unsealed(record: Record) -> int:
    """Return how many decisions at the beginning have no digest, as those that were taken before `SEALED_SINCE`.

    A record of which all are may also have lost its digests: others tell, which are older and have theirs.
    """
    return next((n for n, each in enumerate(record.decisions) if not _lacks_digest(each)), len(record.decisions))


def flaws(record: Record, check: Check | None = None) -> Iterator[str]:
    """Yield what is wrong with the chain of a record that was read, one line each; with a key, signatures too.

    A record as long as it may get has lost its oldest decisions without anybody's fault, and those that `unsealed`
    counts were taken before there were digests: the first one after them is sealed as such.
    """
    decisions = record.decisions
    first = decisions[0] if decisions else None
    is_first = first is None or first.digest == UNSEALED or first.previous == _genesis(record)
    if first is not None and not is_first and len(decisions) < MAX_DECISIONS:
        yield f"decision {first.sequence}: those before it are missing, or it belongs to another rollout"
    for former, decision in pairwise(decisions):
        if decision.digest != UNSEALED and decision.previous != former.digest:
            yield f"decision {decision.sequence}: does not follow {former.sequence}; one was dropped or swapped"
    for decision in decisions[unsealed(record) :]:
        yield from _flaws_of(decision, check)
    last = decisions[-1].sequence if decisions else 0
    if last != record.sequence:
        yield f"decision {record.sequence}: is missing; the last one is {last}"


def _flaws_of(decision: Decision, check: Check | None) -> Iterator[str]:
    name = f"decision {decision.sequence}"
    if _lacks_digest(decision):
        yield f"{name}: has no digest"
        return
    if decision.digest != _digest(decision):
        yield f"{name}: its fields are not those that were sealed"
    if decision.inputs and decision.inputs_digest != _inputs_digest(decision):
        yield f"{name}: its inputs, result or verdicts are not those that were sealed"
    if check is not None and decision.signature in ("", UNSEALED):
        yield f"{name}: has no signature"
    elif check is not None and not check(decision.digest, decision.signature):
        yield f"{name}: its signature is not of this key"


def _lacks_digest(decision: Decision) -> bool:
    return decision.digest in ("", UNSEALED)


def cut(text: str) -> str:
    """Return a text as it is stored."""
    return text if len(text) <= MESSAGE_MAX_LENGTH else f"{text[: MESSAGE_MAX_LENGTH - 3]}..."


def _genesis(record: Record) -> str:
    return json_digest([record.name, record.model, record.stable, record.candidate], _DIGITS)


def _digest(decision: Decision) -> str:
    fields = [
        decision.previous,
        decision.sequence,
        decision.at_s,
        decision.signal,
        decision.phase.label,
        decision.weight,
        *map(cut, (decision.actor, decision.requested_by, decision.reason, decision.message)),
        decision.inputs_digest,
    ]
    return json_digest(fields, _DIGITS)


def _inputs_digest(decision: Decision) -> str:
    verdicts: list[Any] = [
        [
            verdict.gate,
            verdict.outcome.value,
            verdict.reason,
            verdict.message,
            repr(float(verdict.progress)),
            sorted((name, repr(float(number))) for name, number in verdict.numbers.items()),
        ]
        for verdict in decision.verdicts
    ]
    return hashlib.sha256(canonical_json([decision.inputs, decision.result, verdicts]).encode()).hexdigest()
