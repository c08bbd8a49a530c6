"""Text of what `apply` would change: fields with their values before and after, and the revision that follows."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any, Final

from segserve_platform.platforms.manifests import revision_of
from segserve_platform.platforms.port import MODEL, Change, Json, ParsedResource, user_fields

MAX_VALUE_LENGTH: Final = 100


def change_lines(
    resource: ParsedResource, change: Change, before: Mapping[str, Json], after: Mapping[str, Json]
) -> Iterator[str]:
    """Yield the outcome of a dry run, and below it each field that would change.

    `before` and `after` are all models of the platform, by name, as they are and as they would be.
    """
    yield f"{resource.title} {change.outcome} (dry run){_revision_text(resource, change, before, after)}"
    if change.before is not None:
        yield from (f"  {line}" for line in differences("", user_fields(change.before), user_fields(change.after)))


def follower_lines(before: Mapping[str, Json], after: Mapping[str, Json], applied: Collection[str]) -> Iterator[str]:
    """Yield a line for each model that is not `applied`, and whose revision changes with a model that it names."""
    for name, manifest in before.items():
        former, following = revision_of(manifest, before), revision_of(manifest, after)
        if name not in applied and former != following:
            yield f"segmentationmodel/{name} follows (dry run): new revision {following or 'none'}, now {former}"


def differences(path: str, before: Any, after: Any) -> Iterator[str]:
    """Yield a line for each field that differs: `~` changed, `+` added, `-` removed.

    Items of lists are matched by their content, so that one that is inserted is one line.
    """
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            place = f"{path}.{key}" if path else key
            if key not in after:
                yield f"- {place}: {_short(before[key])}"
            elif key not in before:
                yield f"+ {place}: {_short(after[key])}"
            else:
                yield from differences(place, before[key], after[key])
    elif isinstance(before, list) and isinstance(after, list):
        yield from _items(path, before, after)
    else:
        yield f"~ {path}: {_short(before)} -> {_short(after)}"


def _items(path: str, before: list[Any], after: list[Any]) -> Iterator[str]:
    matcher = SequenceMatcher(None, [*map(_key, before)], [*map(_key, after)], autojunk=False)
    for kind, first, end, new_first, new_end in matcher.get_opcodes():
        if kind == "replace" and end - first == new_end - new_first:
            for number in range(end - first):
                yield from differences(
                    f"{path}[{new_first + number}]", before[first + number], after[new_first + number]
                )
        elif kind != "equal":
            yield from (f"- {path}[{index}]: {_short(before[index])}" for index in range(first, end))
            yield from (f"+ {path}[{index}]: {_short(after[index])}" for index in range(new_first, new_end))


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}..."


def _revision_text(
    resource: ParsedResource, change: Change, before: Mapping[str, Json], after: Mapping[str, Json]
) -> str:
    """Return whether a model's answers could change: it would get a new revision, which is proved and rolled out."""
    if resource.resource.kind != MODEL:
        return ""
    former, next_one = revision_of(change.before, before), revision_of(change.after, after)
    if not next_one or (change.outcome == "unchanged" and next_one == former):
        return ""
    if not former:
        return f": revision {next_one}"
    return f": new revision {next_one}, now {former}" if next_one != former else f": stays revision {next_one}"
