"""`segserve rollout list` and `replay`: records of rollouts, and their decisions derived again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml
from rich.markup import escape
from rich.table import Table

from segserve_operator.api.loading import parse_value
from segserve_operator.api.rollout_policy import RolloutPolicy
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.rollout.replay import Replayed, WhatIf, replay
from segserve_operator.mapping.packed_evidence import CHUNK_ROWS
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.rollout.render import COLOURS
from segserve_platform.platforms.port import ROLLOUT, Json, Platform
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.rollouts.documents import decision_document, stamp
from segserve_platform.platforms.rollouts.rollout_view import chunked_rows, is_written, record_of, state_of
from segserve_platform.platforms.rollouts.words import span

COLUMNS: Final = ("ROLLOUT", "MODEL", "STABLE", "CANDIDATE", "PHASE", "WEIGHT", "AGE", "TOOK", "NOW")


def rollouts(platform: Platform, model: str | None) -> list[tuple[Json, Record]]:
    """Return the records of all rollouts, or of one model's, with their resources; newest first."""
    records = [(manifest, record_of(manifest)) for manifest in platform.rollouts() if is_written(manifest)]
    mine = [(manifest, record) for manifest, record in records if model in (None, record.model)]
    return sorted(mine, key=lambda each: (-float(each[1].progress.started_s), each[1].name))


def rollouts_table(records: Iterable[Record], models: Iterable[Json], *, wide: bool = False) -> Table:
    """Return rollouts as a table; a record may be some seconds behind its model's status.

    How each went is history; NOW is the role that its revision has today.
    """
    present = {model["metadata"]["name"]: Present.of(model) for model in models}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (*COLUMNS, "REASON", "MESSAGE") if wide else COLUMNS:
        table.add_column(name, no_wrap=True)
    now_s = time.time()
    for record in records:
        phase, started_s = Phase(int(record.progress.phase)), float(record.progress.started_s)
        last = record.decisions[-1] if record.decisions else None
        row = [
            record.name,
            record.model,
            record.stable,
            record.candidate,
            f"[{COLOURS[phase]}]{phase.label}[/]",
            "" if phase in ENDED else str(last.weight if last is not None else 0),
            span(now_s - started_s),
            span(float(record.progress.since_s) - started_s) if phase in ENDED else "",
            present[record.model].role_of(record.candidate) if record.model in present else "",
        ]
        table.add_row(
            *[*row, *((last.reason, escape(last.message)) if last is not None else ("", ""))] if wide else row
        )
    return table


FILES: Final = (".json", ".yaml", ".yml")


def is_file(source: str) -> bool:
    """Return whether a source is a file rather than a name."""
    return source.endswith(FILES) or "/" in source


def record_from_file(path: Path) -> Record:
    """Return the record in a file written by `rollout list -o yaml`; raises `CommandError`."""
    manifests = [each for each in _documents(path) if each.get("kind") == ROLLOUT]
    if len(manifests) != 1:
        raise CommandError(f"{path} must have one document of the kind {ROLLOUT}, got {len(manifests)}")
    return record_of(manifests[0])


def record_of_name(platform: Platform, name: str) -> Record:
    """Return a record by its own name, or the record of a model's latest rollout; raises `CommandError`."""
    manifest = platform.rollout(name)
    if manifest is None:
        standing = state_of(platform.model(name))
        manifest = None if standing is None else platform.rollout(standing.rollout)
    if manifest is None:
        raise CommandError(f"no record of {name!r}; `segserve rollout list` shows all")
    count = -(-chunked_rows(manifest) // CHUNK_ROWS)
    return record_of(manifest, platform.chunks(manifest["metadata"]["name"], count) if count else ())


def policy_from_file(path: Path) -> RolloutPolicy:
    """Return the policy in a file: a model with `spec.rollout`, or the policy itself.

    Raises `CommandError`, and `SpecError` with every problem of the policy.
    """
    documents = _documents(path)
    if len(documents) != 1:
        raise CommandError(f"{path} must have one document with a policy, got {len(documents)}")
    value = documents[0]
    if "kind" in value:
        value = (value.get("spec") or {}).get("rollout") or {}
        if not value:
            raise CommandError(f"{path} has no spec.rollout")
    plain = json.loads(json.dumps(value, default=str))  # YAML has dates, which no field takes
    return parse_value(RolloutPolicy, plain, f"{path}: the policy")


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        # JSON is also YAML.
        documents = [each for each in yaml.safe_load_all(path.read_text()) if each is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from error
    documents = [item for each in documents for item in (each if isinstance(each, list) else [each])]
    if not all(isinstance(each, dict) for each in documents):
        raise CommandError(f"{path} must hold resources or a policy")
    return documents


def replay_decisions(record: Record) -> tuple[Replayed, ...]:
    """Return every decision whose evidence is recorded, derived again; raises `CommandError` without any."""
    try:
        again = replay(record)
    except ValueError as error:
        raise CommandError(f"{record.name} cannot be replayed: {error}") from error
    if not again:
        raise CommandError(f"{record.name} has {len(record.decisions)} decisions, none with recorded evidence")
    return again


def summary(record: Record, again: Iterable[Replayed]) -> str:
    """Return the result of a replay in one line."""
    decisions = list(again)
    same, old = sum(each.same for each in decisions), len(record.decisions) - len(decisions)
    without = f"; {old} older ones have no recorded evidence" if old else ""
    return f"{record.name}: {same} of {len(decisions)} decisions are reproduced byte for byte{without}"


def replayed_table(record: Record, again: Iterable[Replayed]) -> Table:
    """Return decisions and whether each came out as recorded."""
    table = _table("DECISION", "AT", "SIGNAL", "PHASE", "WEIGHT", "ACTOR", "AGAIN")
    decisions = {decision.sequence: decision for decision in record.decisions}
    for each in again:
        decision = decisions[each.sequence]
        verdict = "[green]same[/]" if each.same else "[red]differs[/]"
        row = (decision.signal, decision.phase.label, f"{decision.weight} %", decision.actor)
        table.add_row(str(each.sequence), stamp(each.at_s), *map(escape, row), verdict)
    return table


def differences(again: Iterable[Replayed]) -> list[str]:
    """Return the recorded and the derived form of each decision that differs."""
    return [
        f"decision {each.sequence}\n  recorded {each.recorded}\n  derived  {each.derived}"
        for each in again
        if not each.same
    ]


def replayed_document(record: Record, again: Iterable[Replayed]) -> Json:
    """Return a replay as JSON."""
    decisions = {decision.sequence: decision for decision in record.decisions}
    replayed = [
        decision_document(decisions[each.sequence])
        | {"same": each.same}
        | ({} if each.same else {"recorded": each.recorded, "derived": each.derived})
        for each in again
    ]
    unreplayed = {"withoutWhatTheySaw": len(record.decisions) - len(replayed)}
    return {"rollout": record.name, "same": all(each["same"] for each in replayed), **unreplayed, "decisions": replayed}


def what_if_table(record: Record, other: Iterable[WhatIf]) -> Table:
    """Return the moves of another policy next to what was done at or before that moment."""
    table = _table("AT", "SIGNAL", "PHASE", "WEIGHT", "IN FACT")
    for each in other:
        before = [decision for decision in record.decisions if decision.at_s <= each.at_s]
        fact = f"{before[-1].phase.label} {before[-1].weight} %" if before else "not started"
        table.add_row(stamp(each.at_s), each.signal, each.phase.label, f"{each.weight} %", fact)
    return table


def what_if_document(record: Record, other: Iterable[WhatIf]) -> Json:
    """Return the moves of another policy as JSON."""
    moves = [
        {"at": stamp(each.at_s), "signal": each.signal, "phase": each.phase.label, "weight": each.weight}
        for each in other
    ]
    return {"rollout": record.name, "moves": moves}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table
