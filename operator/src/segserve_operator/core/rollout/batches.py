"""Many at once: dataclasses of arrays stacked along a new first axis, and routines that are answered together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
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
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        return type(value), *[taken_apart(getattr(value, name), arrays) for name in fields]
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
    if isinstance(like, (np.ndarray, bool, int, float, np.generic)):
        made = next(arrays)
    elif isinstance(like, Mapping):
        made = {name: put_together(each, arrays) for name, each in like.items()}
    elif isinstance(like, tuple):
        made = tuple(put_together(each, arrays) for each in like)
    elif hasattr(like, "__dataclass_fields__"):
        fields = like.__dataclass_fields__
        made = type(like)(**{name: put_together(getattr(like, name), arrays) for name in fields})
    result: T = made
    return result


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
    return [put_together(result, (part[index, ...].copy() for part in parts)) for index in range(len(values))]


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
