"""The agreement of two models' answers to one image, and the classes that both have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segserve.rendering.display import printable
from segserve.results.objects import KeypointResult
from segserve.results.result import PanopticResult, Result, SemanticResult
from segserve.results.values import ModelInfo
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from segserve_builder.scoring.agreement import Agreement
    from segserve_builder.scoring.agreement import Answer as ComparedAnswer


_CLASSES: Final = 4
"""Classes that a pair's figures name: the ones that agree least."""
_SIZES: Final = ("small", "medium", "large")


def common_classes(first: ModelInfo, second: ModelInfo) -> dict[int, str]:
    """Return the names of the classes of both: the first model's by its ids, others of the second behind."""
    names = {one.id: one.name for one in first.classes}
    for one in second.classes:
        if one.name not in names.values():
            names[max(names, default=-1) + 1] = one.name
    return names


def class_name(number: int, names: Mapping[int, str]) -> str:
    """Return the name of a class of an agreement, which joins the classes beyond the first hundreds."""
    from segserve_builder.scoring.agreement import OTHER_CLASSES

    return "others" if number == OTHER_CLASSES else printable(names.get(number, str(number)))


def agreement_of(first: Result, second: Result, names: Mapping[int, str]) -> Agreement:
    """Return how much two answers to one image agree; classes are the same if their names are.

    `names` are from `common_classes`. Raises `BadRequestError` for answers that cannot be compared.
    """
    from segserve_builder.scoring.agreement import agreement

    numbers = {name: number for number, name in names.items()}
    found = agreement(_answer(first, numbers), _answer(second, numbers))
    if found is None:
        kinds = " and ".join(f"{type(each).__name__} of {each.size[1]} x {each.size[0]}" for each in (first, second))
        raise BadRequestError(f"answers cannot be compared: {kinds}")
    return found


def _answer(result: Result, numbers: Mapping[str, int]) -> ComparedAnswer:
    """Return the outputs that agreement is measured by, with masks as run lengths and classes numbered by name."""
    found = list(result.annotations())
    classes = np.array([numbers.get(each.class_name, each.class_id) for each in found], np.int64)
    answer: dict[str, Any] = {"SIZE": np.array(result.size, np.int32)}
    masks = [each.mask.rle["counts"] for each in found if each.mask is not None]
    if len(masks) == len(found) and (masks or isinstance(result, SemanticResult | PanopticResult)):
        answer["MASKS"] = np.array(masks, object)
    if isinstance(result, PanopticResult):
        rows = [{"id": each.number, "class": int(number), "score": each.score}
                for each, number in zip(found, classes, strict=True)]  # fmt: skip
        return answer | {"SEGMENTS": np.array([json.dumps(rows).encode()], object)}
    if isinstance(result, SemanticResult):
        return answer | {"CLASSES": classes, "AREAS": np.array([each.area for each in found], np.int64)}
    answer |= {"CLASSES": classes, "BOXES": result.boxes, "SCORES": result.scores}
    return answer | ({"KEYPOINTS": result.points} if isinstance(result, KeypointResult) else {})


def agreement_lines(
    first: str, classes: Mapping[int, float], only: Mapping[str, Sequence[int]], names: Mapping[int, str]
) -> list[str]:
    """Return the figures of a pair as lines of text: the agreement, the classes that agree least, and objects without
    a partner, `only` one side's, by size.
    """
    lines = [f"agreement {first}"]
    worst = sorted(classes.items(), key=lambda item: item[1])[:_CLASSES]
    if worst:
        shown = ", ".join(f"{class_name(number, names)} {value:.3f}" for number, value in worst)
        lines.append(f"least by class: {shown}")
    for side, counts in only.items():
        if any(counts):
            by_size = ", ".join(f"{count} {size}" for count, size in zip(counts, _SIZES, strict=True) if count)
            lines.append(f"only {side} has: {by_size}")
    return lines
