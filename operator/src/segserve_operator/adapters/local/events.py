"""Events of models and of the pool on this machine, in a file beside the resource that they are about."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from segserve_operator.adapters.local.files import bound_log
from segserve_operator.core.world.event import Event

MOST_BYTES: Final = 256 * 1024
_KEPT_BYTES: Final = 128 * 1024
_TAIL_BYTES: Final = 16 * 1024
"""The last event is within them; a longer one is written again if it is repeated."""
_DEPTH: Final = 3
"""Fields of a specification are named by so many parts, such as spec.rollout.steps."""


def add_event(folder: Path, event: Event, now_s: float) -> None:
    """Append an event, unless it repeats the last one."""
    path = _file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", errors="replace") as file:
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        if [known for _, known in _parsed(file.readlines()[-1:])] == [event]:
            return
        file.write(json.dumps({"at": round(now_s, 3), **asdict(event)}) + "\n")
    bound_log(path, limit_bytes=MOST_BYTES, kept_bytes=_KEPT_BYTES)


def read_events(folder: Path) -> list[tuple[float, Event]]:
    """Return the events with their Unix times in seconds, oldest first; unreadable ones are left out."""
    try:
        lines = _file(folder).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return list(_parsed(lines))


def _parsed(lines: Iterable[str]) -> Iterator[tuple[float, Event]]:
    for line in lines:
        try:
            read = json.loads(line)
            yield float(read["at"]), Event(read["kind"], str(read["reason"]), str(read["message"]))
        except (ValueError, TypeError, LookupError):
            continue


def edit_event(before: Mapping[str, Any], after: Mapping[str, Any]) -> Event:
    """Return the event that says which fields of a resource have changed, and since which generation."""
    fields = _changed("spec", before.get("spec"), after.get("spec"))
    message = f"generation {after['metadata']['generation']}: {', '.join(fields) or 'labels or annotations'}"
    return Event("Normal", "Edited", message)


def _changed(path: str, before: object, after: object) -> list[str]:
    if before == after:
        return []
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)) or path.count(".") + 1 >= _DEPTH:
        return [path]
    keys = dict.fromkeys((*before, *after))
    return [field for key in keys for field in _changed(f"{path}.{key}", before.get(key), after.get(key))]


def _file(folder: Path) -> Path:
    return folder / "events.jsonl"
