"""Many at once: dataclasses of arrays stacked along a new first axis, and routines that are answered together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Key = TypeVar("Key", bound=Hashable)
Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")
T = TypeVar("T")


def taken_apart(value: Any, arrays: list[NDArray[Any]]) -> Hashable:
    """Append the arrays and numbers of `value` to `arrays`, and return its shape: values of equal shape can be stacked.

    `value` consists of dataclasses, mappings and tuples of arrays and numbers; whatever else it contains (names, None)
    is a part of its shape.
    """
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return value.dtype.char, value.shape
    names = _fields(value.__class__)
    if names is not None:
        return type(value), *[taken_apart(getattr(value, name), arrays) for name in names]
    if isinstance(value, (bool, int, float, np.generic)):
        return taken_apart(np.asarray(value), arrays)
    if isinstance(value, tuple):
        return tuple([taken_apart(each, arrays) for each in value])
    if isinstance(value, Mapping):
        return tuple([(name, taken_apart(each, arrays)) for name, each in value.items()])
    return (value,)


def put_together(like: T, arrays: Iterator[NDArray[Any]]) -> T:
    """Return a value like `like`, of other arrays in the order of `taken_apart`."""
    made: Any = like
    names = _fields(made.__class__)
    if names is not None:
        parts = [getattr(like, name) for name in names]
        # Most are arrays: asked here, since this is done for each number of each rollout in each look.
        made = type(like)(*[next(arrays) if type(part) is np.ndarray else put_together(part, arrays) for part in parts])
    elif isinstance(like, (np.ndarray, bool, int, float, np.generic)):
        made = next(arrays)
    elif isinstance(like, Mapping):
        made = {name: put_together(each, arrays) for name, each in like.items()}
    elif isinstance(like, tuple):
        made = tuple([put_together(each, arrays) for each in like])
    result: T = made
    return result


@cache
def _fields(kind: type) -> tuple[str, ...] | None:
    """Return the names of a dataclass's fields, None for any other type."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None


def at_once(compute: Callable[[T], Result], like: T, values: Sequence[Sequence[NDArray[Any]]]) -> list[Result]:
    """Return what `compute` makes of each value, in one call for all: stacked along the first axis.

    The values are taken apart, and all have the shape of `like`. All arrays of a result must have the first axis. What
    becomes of a value does not depend on the others.
    """
    stacked = [np.stack(arrays) for arrays in zip(*values, strict=True)]
    result = compute(put_together(like, iter(stacked)))
    parts: list[NDArray[Any]] = []
    taken_apart(result, parts)
    # Copies: views would keep the arrays of all the others in memory.
    return [put_together(result, iter([part[at, ...].copy() for part in parts])) for at in range(len(values))]


def answered(
    routines: Mapping[Key, Generator[Question, Answer, Result]],
    answer: Callable[[Sequence[Question]], Sequence[Answer]],
) -> dict[Key, Result]:
    """Run routines that ask questions to their ends; those asked at the same time are answered together."""
    results: dict[Key, Result] = {}
    replies: dict[Key, Answer | None] = dict.fromkeys(routines)
    while replies:
        questions: dict[Key, Question] = {}
        for key, reply in replies.items():
            try:
                # The first `send` of a generator must be of None.
                questions[key] = routines[key].send(reply)  # type: ignore[arg-type]
            except StopIteration as ended:
                results[key] = ended.value
        replies = dict(zip(questions, answer(tuple(questions.values())), strict=True)) if questions else {}
    return {key: results[key] for key in routines}
