"""Tolerant reading of what another release of segserve wrote: what this one does not know is left out, and named.

What people write is read strictly, by `segserve_operator.api.loading`; this is for what programs read of each other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)
Path: TypeAlias = tuple[int | str, ...]
_MAX_ROUNDS: Final = 64
_UNKNOWN: Final = frozenset({"extra_forbidden", "union_tag_invalid", "literal_error", "enum"})


def read_tolerantly(kind: type[M], plain: Any, *, repair: bool = True) -> tuple[M, tuple[str, ...]]:
    """Return a value of `kind` from JSON, and the paths (`rollout.gates.0.window`) of what was left out.

    An unknown field is left out alone; a field whose value this release does not know counts as absent; an object that
    lacks a required field is left out as a whole. Without `repair` only unknown fields and words are left out, and what
    no release writes is an error. Raises `ValidationError` if too little remains.
    """
    try:
        return kind.model_validate(plain), ()
    except ValidationError as error:
        problem = error
    remaining, left_out = copy.deepcopy(plain), set[str]()
    for _ in range(_MAX_ROUNDS):
        details = problem.errors()
        if not repair and any(detail["type"] not in _UNKNOWN for detail in details):
            break
        paths = {_present(remaining, detail["loc"]) for detail in details} - {()}
        # From the last item of a list on, so that the numbers of the others stay right, and parts before the whole.
        for path in sorted(paths, key=lambda path: [(isinstance(part, str), part) for part in path], reverse=True):
            container = remaining
            for part in path[:-1]:
                container = container[part]
            del container[path[-1]]
            left_out.add(".".join(map(str, path)))
        try:
            return kind.model_validate(remaining), tuple(sorted(left_out))
        except ValidationError as error:
            problem = error
        if not paths:
            break
    raise problem


def unknown_fields(kind: type[BaseModel], plain: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of the fields of a JSON value that `kind` does not have; values are not judged."""
    try:
        kind.model_validate(plain)
    except ValidationError as error:
        unknown = (detail["loc"] for detail in error.errors() if detail["type"] == "extra_forbidden")
        return tuple(sorted({".".join(map(str, _present(plain, location))) for location in unknown}))
    return ()


def _present(plain: Any, location: Path) -> Path:
    """Return the part of an error's location that the value has: not the tags of unions, nor a missing field."""
    path: list[int | str] = []
    for part in location:
        is_field = isinstance(plain, dict) and part in plain
        if is_field or (isinstance(plain, list | tuple) and isinstance(part, int) and part < len(plain)):
            plain = plain[part]
            path.append(part)
    return tuple(path)
