"""Reading of what is damaged: what cannot be read is left out, and named, and the rest holds."""

from __future__ import annotations

import copy
from typing import Any, Final, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)
Path: TypeAlias = tuple[int | str, ...]
_MAX_ROUNDS: Final = 64


def read_tolerantly(kind: type[M], plain: Any) -> tuple[M, tuple[str, ...]]:
    """Return a value of `kind` from JSON, and the paths (`rollout.gates.0.window`) of what was left out.

    A field whose value is not allowed counts as absent; an object that lacks a required field is left out as a whole.
    Raises `ValidationError` if too little remains.
    """
    try:
        return kind.model_validate(plain), ()
    except ValidationError as error:
        problem = error
    remaining, left_out = copy.deepcopy(plain), set[str]()
    for _ in range(_MAX_ROUNDS):
        paths = {_present(remaining, detail["loc"]) for detail in problem.errors()} - {()}
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


def _present(plain: Any, location: Path) -> Path:
    """Return the part of an error's location that the value has: not the tags of unions, nor a missing field."""
    path: list[int | str] = []
    for part in location:
        is_field = isinstance(plain, dict) and part in plain
        if is_field or (isinstance(plain, list | tuple) and isinstance(part, int) and part < len(plain)):
            plain = plain[part]
            path.append(part)
    return tuple(path)
