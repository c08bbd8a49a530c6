"""How much a smaller file changes the answers, class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Answer = Mapping[str, NDArray[Any]]


def label_map(answer: Answer) -> NDArray[Any]:
    """Return the label map (H, W) of a semantic answer that was asked with `encoding=raw`."""
    import numpy as np

    height, width = (int(side) for side in answer["SIZE"])
    data = answer["LABELS"].item()
    return np.frombuffer(data, "u1" if len(data) == height * width else "<u2").reshape(height, width)


def class_iou(expected: Iterable[NDArray[Any]], given: Iterable[NDArray[Any]], number: int) -> list[float | None]:
    """Return each class's IoU over pairs of label maps; None for a class that is in neither."""
    import numpy as np

    both, either = np.zeros(number, np.int64), np.zeros(number, np.int64)
    for right, seen in zip(expected, given, strict=True):
        for index in range(number):
            one, other = right == index, seen == index
            both[index] += np.count_nonzero(one & other)
            either[index] += np.count_nonzero(one | other)
    return [inner / outer if outer else None for inner, outer in zip(both.tolist(), either.tolist(), strict=True)]


def object_iou(expected: Iterable[Answer], given: Iterable[Answer], ids: Sequence[int]) -> list[float | None]:
    """Return, for each class, how well its boxes are found again: the mean of each one's best IoU; None without any."""
    from pycocotools import mask as coco

    best: dict[int, list[float]] = {number: [] for number in ids}
    for right, seen in zip(expected, given, strict=True):
        for number in ids:
            left, others = (_boxes(answer, number) for answer in (right, seen))
            overlaps = coco.iou(left, others, [0] * len(others)) if left and others else [[0.0]] * len(left)
            best[number] += [float(max(row)) for row in overlaps]
    return [sum(found) / len(found) if (found := best[number]) else None for number in ids]


def _boxes(answer: Answer, number: int) -> list[list[float]]:
    boxes = answer["BOXES"][answer["CLASSES"] == number].tolist()
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
