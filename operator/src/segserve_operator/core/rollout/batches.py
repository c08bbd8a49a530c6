"""Many at once: dataclasses of arrays stacked along a new first axis, and routines that are answered together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segserve_operator.core.rollout.plain import reader

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
    if (fields_of := reader(value.__class__)) is not None:
        shape: list[Any] = [type(value)]
        for part in fields_of(value):
            # Most are arrays: checked here, since this is done for each number of each rollout in each look.
            if type(part) is np.ndarray:
                arrays.append(part)
                shape += part.dtype.char, part.shape
            else:
                shape.append(taken_apart(part, arrays))
        return tuple(shape)
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
    fields_of = reader(made.__class__)
    if fields_of is not None:
        parts = fields_of(like)
        made = type(like)(*[next(arrays) if type(part) is np.ndarray else put_together(part, arrays) for part in parts])
    elif isinstance(like, (np.ndarray, bool, int, float, np.generic)):
        made = next(arrays)
    elif isinstance(like, Mapping):
        made = {name: put_together(each, arrays) for name, each in like.items()}
    elif isinstance(like, tuple):
        made = tuple([put_together(each, arrays) for each in like])
    result: T = made
    return result


def at_once(compute: Callable[[T], Result], like: T, values: Sequence[Sequence[NDArray[Any]]]) -> list[Result]:
    """Return what `compute` makes of each value, in one call for all: stacked along the first axis.

    The values are taken apart, and all have the shape of `like`. All arrays of a result must have the first axis. What
    becomes of a value does not depend on the others.
    """
    stacked = _stacked(values)
    result = compute(put_together(like, iter(stacked)))
    parts: list[NDArray[Any]] = []
    taken_apart(result, parts)
    return [put_together(result, iter(each)) for each in _unstacked(parts, len(values))]


def _stacked(values: Sequence[Sequence[NDArray[Any]]]) -> list[NDArray[Any]]:
    """Return the arrays of values stacked along a new first axis: arrays of a type by one copy of all their numbers."""
    first = values[0]
    stacked: list[NDArray[Any]] = [*first]
    for places in _places(first):
        flat = np.concatenate([arrays[place] for arrays in values for place in places], axis=None)
        rows, start = flat.reshape(len(values), -1), 0
        for place in places:
            stop = start + first[place].size
            # Contiguous, as sums of other layouts may differ in the last bit.
            stacked[place] = rows[:, start:stop].copy().reshape(len(values), *first[place].shape)
            start = stop
    return stacked


def _unstacked(parts: Sequence[NDArray[Any]], count: int) -> list[list[NDArray[Any]]]:
    """Return for each value its part of each array; a value's parts share memory with each other, and no others."""
    values: list[list[NDArray[Any]]] = [[*parts] for _ in range(count)]
    for places in _places(parts):
        rows = np.concatenate([parts[place].reshape(count, parts[place].size // count) for place in places], axis=1)
        ends = np.cumsum([parts[place].size // count for place in places]).tolist()
        slices = [
            (place, parts[place].shape[1:], *ends) for place, ends in zip(places, pairwise([0, *ends]), strict=True)
        ]
        for value, row in zip(values, rows, strict=True):
            own = row.copy()
            for place, shape, start, stop in slices:
                value[place] = own[start:stop].reshape(shape)
    return values


def _places(arrays: Sequence[NDArray[Any]]) -> Iterable[list[int]]:
    places: dict[str, list[int]] = {}
    for place, array in enumerate(arrays):
        places.setdefault(array.dtype.char, []).append(place)
    return places.values()


def answered(
    routines: Mapping[Key, Generator[Question, Answer, Result]],
    answer: Callable[[Sequence[Question]], Sequence[Answer]],
) -> dict[Key, Result]:
    """Run routines that ask questions to their ends; simultaneous questions are answered together."""
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
