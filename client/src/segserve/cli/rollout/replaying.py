"""`segserve rollout replay`: each decision made again from its record, and what another policy would have done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from segserve.cli.failures import CommandError
from segserve.cli.rollout.status import decision_document, stamp
from segserve.platforms.port import ROLLOUT
from segserve.platforms.rollouts.rollout_view import chunked_rows, record_of, standing_of
from segserve_operator.api.rollout_policy import RolloutPolicy
from segserve_operator.core.rollout.replay import replay
from segserve_operator.mapping.packed_evidence import CHUNK_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from segserve.platforms.port import Json, Platform
    from segserve_operator.core.rollout.record import Record
    from segserve_operator.core.rollout.replay import Replayed, WhatIf

FILES: Final = (".json", ".yaml", ".yml")


def is_file(source: str) -> bool:
    """Return whether a source is a file, as opposed to a name."""
    return source.endswith(FILES) or "/" in source


def record_from_file(path: Path) -> Record:
    """Return the record that a file holds, as `rollout list -o yaml` or a bundle has it."""
    found = [each for each in _documents(path) if each.get("kind") == ROLLOUT]
    if len(found) != 1:
        raise CommandError(f"{path} has {len(found)} documents of the kind {ROLLOUT}; it is to have one")
    return record_of(found[0])


def record_of_name(here: Platform, name: str) -> Record:
    """Return a record by its own name, or of a model's latest rollout."""
    manifest = here.rollout(name)
    if manifest is None:
        standing = standing_of(here.model(name))
        manifest = None if standing is None else here.rollout(standing.rollout)
    if manifest is None:
        raise CommandError(f"no record of {name!r}; `segserve rollout list` shows what there is")
    count = -(-chunked_rows(manifest) // CHUNK_ROWS)
    return record_of(manifest, here.chunks(manifest["metadata"]["name"], count) if count else ())


def policy_from_file(path: Path) -> RolloutPolicy:
    """Return the policy of a file: a model with `spec.rollout`, or what would stand there."""
    documents = _documents(path)
    if len(documents) != 1:
        raise CommandError(f"{path} has {len(documents)} documents; a policy is one")
    value = documents[0]
    if "kind" in value:
        value = (value.get("spec") or {}).get("rollout") or {}
        if not value:
            raise CommandError(f"{path} has no spec.rollout")
    try:
        return RolloutPolicy.model_validate(value)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise CommandError(f"{path} is no rollout policy: {told}") from error


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        # JSON is YAML too.
        found = [each for each in yaml.safe_load_all(path.read_text()) if each is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from error
    found = [item for each in found for item in (each if isinstance(each, list) else [each])]
    if not all(isinstance(each, dict) for each in found):
        raise CommandError(f"{path} holds something else than resources or a policy")
    return found


def made_again(record: Record) -> tuple[Replayed, ...]:
    """Return all decisions again of which the record has what they saw; `CommandError` where it has none."""
    try:
        again = replay(record)
    except ValueError as error:
        raise CommandError(f"{record.name} cannot be replayed: {error}") from error
    if not again:
        raise CommandError(f"{record.name} has {len(record.decisions)} decisions, and of none what it saw")
    return again


def summary(record: Record, again: Iterable[Replayed]) -> str:
    """Return in a line how the replay went."""
    found = list(again)
    same, old = sum(each.same for each in found), len(record.decisions) - len(found)
    kept = f"; {old} more are kept without what they saw" if old else ""
    return f"{record.name}: {same} of {len(found)} decisions come out the same, byte for byte{kept}"


def replayed_table(record: Record, again: Iterable[Replayed]) -> Table:
    """Return decisions with whether each came out as it is recorded."""
    table = _table("DECISION", "AT", "SIGNAL", "PHASE", "WEIGHT", "ACTOR", "AGAIN")
    decisions = {decision.sequence: decision for decision in record.decisions}
    for each in again:
        found = decisions[each.sequence]
        verdict = "[green]the same[/]" if each.same else "[red]another[/]"
        row = (found.signal, found.phase.label, f"{found.weight} %", found.actor)
        table.add_row(str(each.sequence), stamp(each.at_s), *map(escape, row), verdict)
    return table


def differences(again: Iterable[Replayed]) -> list[str]:
    """Return what was recorded and what comes out, for each decision where that differs."""
    return [
        f"decision {each.sequence}\n  recorded {each.recorded}\n  derived  {each.derived}"
        for each in again
        if not each.same
    ]


def replayed_document(record: Record, again: Iterable[Replayed]) -> Json:
    """Return a replay for programs."""
    decisions = {decision.sequence: decision for decision in record.decisions}
    found = [
        decision_document(decisions[each.sequence])
        | {"same": each.same}
        | ({} if each.same else {"recorded": each.recorded, "derived": each.derived})
        for each in again
    ]
    seen = {"withoutWhatTheySaw": len(record.decisions) - len(found)}
    return {"rollout": record.name, "same": all(each["same"] for each in found), **seen, "decisions": found}


def what_if_table(record: Record, other: Iterable[WhatIf]) -> Table:
    """Return what another policy would have done, beside what was done at or before that moment."""
    table = _table("AT", "SIGNAL", "PHASE", "WEIGHT", "IN FACT")
    for each in other:
        before = [decision for decision in record.decisions if decision.at_s <= each.at_s]
        fact = f"{before[-1].phase.label} {before[-1].weight} %" if before else "not begun"
        table.add_row(stamp(each.at_s), each.signal, each.phase.label, f"{each.weight} %", fact)
    return table


def what_if_document(record: Record, other: Iterable[WhatIf]) -> Json:
    """Return what another policy would have done, for programs."""
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
