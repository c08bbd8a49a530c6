"""Agreement of two answers to the same image, without labels: how much of one the other contains, from 0 to 1.

Agreement is not quality: it says that two revisions differ, not which one is right. Each kind of answer has the measure
of its field, with weights by which what flickers at a threshold costs little.

Objects (instances, boxes, keypoints): the best one-to-one assignment within each class (Kuhn 1955), and of it
`sum of (w + w') * likeness / (sum of all w + sum of all w')`, where w and w' are the scores of a pair. With equal
weights that is the panoptic quality of Kirillov et al. (2019) without its threshold: an object that only one side has
counts half. The likeness is the IoU of masks, else of boxes; with keypoints the smaller of the IoU of boxes and of
COCO's object keypoint similarity, at the mean area of both and weighted by the points' scores.

Panoptic segments: the same, and only pairs with an IoU above 0.5 match, as in the panoptic quality.

Label maps and masks by class: the mean IoU of the classes that are in either answer, each weighed by
`min(1, pixels / 32²)`, or by a hundredth of a small image in place of 32²: a few stray pixels are not a lost class.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segserve_builder.scoring.quality import MATCH, SIGMA, SIGMAS
from segserve_builder.steps.public_outputs import EMBEDDING_ID
from segserve_common import MAX_IMAGE_PIXELS
from segserve_common.errors import ProtocolError
from segserve_common.mask_encodings import PNG_MAGIC, read_labels, run_length_counts

Answer: TypeAlias = Mapping[str, NDArray[Any]]
"""The outputs of one request, by name; BYTES as arrays of objects."""
Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.intp]
SizeCounts: TypeAlias = tuple[int, int, int]

MOST_CLASSES: Final = 200
OTHER_CLASSES: Final = -1
"""The class of all beyond `MOST_CLASSES`."""
MOST_OBJECTS: Final = 1000
"""Objects of one answer that are compared: the ones with the best scores."""
MOST_ASSIGNED: Final = 256
"""Objects of one class for which the best assignment is sought; of more, the best pairs are taken first."""
MOST_PIXELS: Final = 200_000_000
"""Pixels of all masks of one answer together that are sent as PNG or raw bytes."""
MOST_RUN_BYTES: Final = 100_000_000
"""Bytes of run lengths to compare, over all pairs of one class whose boxes overlap."""
MOST_REGION_PAIRS: Final = 16_000_000
"""Pairs of regions of two label maps."""
SMALL_PIXELS: Final = 32**2
LARGE_PIXELS: Final = 96**2
"""COCO's sizes of objects: small ones are smaller than the first, large ones at least as large as the second."""
_FAINTEST: Final = 0.01
"""The least weight of an object."""
_BODY: Final = 0.53
"""The average part of a box that a body covers."""
_STRIPE: Final = 4_000_000
"""Pixels of label maps that are counted at a time, so that memory is bounded."""

Kind: TypeAlias = Literal["objects", "segments", "classes"]
_MALFORMED: Final = (ProtocolError, ValueError, TypeError, LookupError)


class _IncomparableError(Exception):
    """Answers whose outputs differ in kind, or whose comparison would take too long."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How much two answers agree, 0 to 1, where 1 is the same: `value` over all, `classes` by the id of a class.

    `classes` are those in either answer: at most `MOST_CLASSES`, the rest joined as `OTHER_CLASSES`. `stable_only` and
    `candidate_only` are the numbers of (small, medium, large) objects without a partner as like as 0.5. `weights` are
    what each class weighs in `value`. `left_out` are objects of both beyond the `MOST_OBJECTS` best of an answer.
    """

    value: float
    classes: Mapping[int, float] = field(default_factory=dict)
    stable_only: SizeCounts = (0, 0, 0)
    candidate_only: SizeCounts = (0, 0, 0)
    weights: Mapping[int, float] = field(default_factory=dict, compare=False)
    left_out: int = 0


def agreement(stable: Answer, candidate: Answer, outputs: Collection[str] | None = None) -> Agreement | None:
    """Return how much two answers to the same image agree; None where they cannot be compared.

    They cannot if their outputs or SIZE differ, if they do not show the objects or classes (other outputs were
    requested), if stable's answer cannot be read, if both are of a promptable model and empty, or if it would take too
    long: more than `MOST_PIXELS`, `MOST_RUN_BYTES` or `MOST_REGION_PAIRS`. A candidate's answer that cannot be read,
    although stable's can, agrees in nothing. `outputs` are the ones that the request's parameter lists, if it has it:
    all others are then empty.
    """
    kind = _kind(stable, outputs)
    if kind is None or kind != _kind(candidate, outputs):
        return None
    try:
        expected = _read(stable, kind)
    except (*_MALFORMED, _IncomparableError):
        return None
    try:
        seen = _read(candidate, kind)
        if expected.size != seen.size:
            return None
        if kind == "classes":
            if expected.labels is not None and seen.labels is not None:
                pixels = _class_pixels_of_maps(expected, seen)
            elif expected.masks is not None and seen.masks is not None:
                pixels = _class_pixels_of_masks(expected, seen)
            else:
                raise _IncomparableError
            full = min(SMALL_PIXELS, max(expected.size[0] * expected.size[1] / 100, 1.0))
            tallies = {}
            for number, (both, left, right) in pixels.items():
                if left or right:
                    weight = min(1.0, max(left, right) / full)
                    tallies[number] = (weight * both / (left + right - both), weight)
            return _tallied(tallies)
        if not len(expected.classes) and not len(seen.classes):
            # A promptable model finds nothing if it is given no prompt, which says nothing of its masks.
            return None if EMBEDDING_ID.name in stable else Agreement(1.0)
        found = _of_objects(expected, seen, MATCH if kind == "segments" else 0.0)
        return replace(found, left_out=expected.left_out + seen.left_out)
    except _IncomparableError:
        return None
    except _MALFORMED:
        return Agreement(0.0)


@dataclass(frozen=True, slots=True)
class _Regions:
    """Regions that an answer shows: of each of N its class and weight, and at least one form of it.

    `masks` are RLE, `boxes` [N, 4] x1 y1 x2 y2, `points` [N, K, 3]; `labels` (H, W) holds the regions' `ids` [N].
    """

    size: tuple[int, int]
    classes: NDArray[np.int64]
    weights: Floats
    masks: list[dict[str, Any]] | None = None
    boxes: Floats | None = None
    points: Floats | None = None
    labels: NDArray[Any] | None = None
    ids: NDArray[np.int64] | None = None
    left_out: int = 0


def _kind(answer: Answer, outputs: Collection[str] | None) -> Kind | None:
    """Return what an answer shows, None if nothing; `outputs` as in `agreement`."""
    shown = answer.keys() if outputs is None else answer.keys() & {"SIZE", *outputs}
    if "SIZE" not in shown:
        return None
    if "SEGMENTS" in answer:
        return "segments" if "SEGMENTS" in shown and {"LABELS", "MASKS"} & shown else None
    if "LABELS" in answer or "AREAS" in answer:
        filled = any(name in shown and answer[name].size for name in ("LABELS", "MASKS"))
        return "classes" if filled and "CLASSES" in shown else None
    # Masks alone may also be of a map's classes or segments, of which none is there in its usual encoding.
    of_objects = {"BOXES", "SCORES", "CLASSES"} & answer.keys()
    return "objects" if of_objects and {"BOXES", "MASKS"} & shown else None


def _read(answer: Answer, kind: Kind) -> _Regions:
    height, width = (int(number) for number in answer["SIZE"].ravel())
    if height < 1 or width < 1 or height * width > MAX_IMAGE_PIXELS:
        raise ProtocolError(f"SIZE must be the height and width of an image, got {height} x {width}")
    size = (height, width)
    if kind == "objects":
        return _read_objects(answer, size)
    if kind == "segments":
        rows = json.loads(_bytes(answer["SEGMENTS"].item()))
        classes = np.array([row["class"] for row in rows], np.int64)
        weights = _weights(np.array([row["score"] for row in rows], np.float64))
        ids = np.array([row["id"] for row in rows], np.int64)
    else:
        classes = ids = answer["CLASSES"].astype(np.int64).ravel()
        weights = np.ones(len(classes))
    regions = _Regions(size, classes, weights, ids=ids)
    if "LABELS" in answer and answer["LABELS"].size:
        return replace(regions, labels=read_labels(_bytes(answer["LABELS"].ravel()[0]), height, width))
    return replace(regions, masks=_masks(answer["MASKS"], len(classes), size))


def _read_objects(answer: Answer, size: tuple[int, int]) -> _Regions:
    """Read objects, the best first; outputs that were not requested are empty: classes are then one, weights equal."""
    columns = {name: answer[name] for name in ("BOXES", "SCORES", "CLASSES", "MASKS", "KEYPOINTS") if name in answer}
    count = max(len(column) for column in columns.values())
    given = {name: column for name, column in columns.items() if len(column)}
    if any(len(column) != count for column in given.values()):
        raise ProtocolError(f"columns of different lengths: { {name: len(column) for name, column in given.items()} }")
    weights = _weights(given["SCORES"].astype(np.float64).ravel()) if "SCORES" in given else np.ones(count)
    best = np.argsort(-weights, kind="stable")[:MOST_OBJECTS]
    masks = _masks(given["MASKS"][best], len(best), size) if "MASKS" in given else None
    left_out = count - len(best)
    if masks is not None and not {"BOXES", "SCORES"} & given.keys():
        # They may be of a map's classes: an empty one is of a class that is not in the image.
        filled = np.asarray(coco.area(masks)) > 0
        best, masks = best[filled], [mask for mask, shown in zip(masks, filled, strict=True) if shown]
    classes = given["CLASSES"].astype(np.int64).ravel() if "CLASSES" in given else np.zeros(count, np.int64)
    return _Regions(
        size,
        classes[best],
        weights[best],
        masks,
        given["BOXES"].astype(np.float64).reshape(count, 4)[best] if "BOXES" in given else None,
        given["KEYPOINTS"].astype(np.float64)[best] if "KEYPOINTS" in given else None,
        left_out=left_out,
    )


def _weights(scores: Floats) -> Floats:
    return np.clip(np.nan_to_num(scores, nan=0.0, posinf=1.0), _FAINTEST, 1.0)


def _masks(column: NDArray[Any], count: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    if len(column) != count:
        raise ProtocolError(f"MASKS has {len(column)} items; expected {count}, one each")
    encoded = [_bytes(mask) for mask in column]
    pixels = size[0] * size[1]
    if pixels * sum(mask.startswith(PNG_MAGIC) or len(mask) == pixels for mask in encoded) > MOST_PIXELS:
        raise _IncomparableError
    return [{"size": list(size), "counts": run_length_counts(mask, *size)} for mask in encoded]


def _bytes(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def _class_pixels_of_maps(stable: _Regions, candidate: _Regions) -> dict[int, tuple[float, float, float]]:
    """Return by class the pixels that are in both maps, in stable's and in the candidate's."""
    joint = _joint_pixels(stable, candidate)
    left, right = joint.sum(1), joint.sum(0)
    rows = {int(number): row for row, number in enumerate(stable.classes)}
    columns = {int(number): column for column, number in enumerate(candidate.classes)}
    return {
        number: (
            float(joint[rows[number], columns[number]]) if number in rows and number in columns else 0.0,
            float(left[rows[number]]) if number in rows else 0.0,
            float(right[columns[number]]) if number in columns else 0.0,
        )
        for number in rows.keys() | columns.keys()
    }


def _class_pixels_of_masks(stable: _Regions, candidate: _Regions) -> dict[int, tuple[float, float, float]]:
    by_class = [dict(zip(each.classes.tolist(), each.masks or (), strict=True)) for each in (stable, candidate)]
    pixels = {}
    for number in by_class[0].keys() | by_class[1].keys():
        masks = [each[number] for each in by_class if number in each]
        both = float(coco.area(coco.merge(masks, intersect=True))) if len(masks) == 2 else 0.0
        left, right = (float(coco.area(each[number])) if number in each else 0.0 for each in by_class)
        pixels[number] = (both, left, right)
    return pixels


def _joint_pixels(stable: _Regions, candidate: _Regions) -> NDArray[np.int64]:
    """Return the pixels [N + 1, M + 1] of each pair of regions of two maps; the last ones are of no region."""
    assert stable.labels is not None
    assert candidate.labels is not None
    rows, columns = (_index_by_label(each) for each in (stable, candidate))
    shape = len(stable.classes) + 1, len(candidate.classes) + 1
    if shape[0] * shape[1] > MOST_REGION_PAIRS:
        raise _IncomparableError
    joint = np.zeros(shape[0] * shape[1], np.int64)
    left, right = stable.labels.ravel(), candidate.labels.ravel()
    for start in range(0, left.size, _STRIPE):
        part = slice(start, start + _STRIPE)
        joint += np.bincount(rows[left[part]] * shape[1] + columns[right[part]], minlength=len(joint))
    return joint.reshape(shape)


def _index_by_label(regions: _Regions) -> Indices:
    assert regions.ids is not None
    indices = np.full(2**16, len(regions.ids), np.intp)
    if len(regions.ids) and regions.ids.min() < 0:
        raise ProtocolError("ids of regions must not be negative")
    indices[regions.ids] = np.arange(len(regions.ids))
    return indices


def _of_objects(stable: _Regions, candidate: _Regions, threshold: float) -> Agreement:
    """Compare objects by the best assignment within each class, of pairs more alike than `threshold`."""
    compare = _comparison(stable, candidate)
    alone = [np.ones(len(each.classes), bool) for each in (stable, candidate)]
    tallies = {}
    for number in np.union1d(stable.classes, candidate.classes).tolist():
        rows, columns = np.flatnonzero(stable.classes == number), np.flatnonzero(candidate.classes == number)
        weights = stable.weights[rows, None] + candidate.weights[None, columns]
        gain, weight = 0.0, float(stable.weights[rows].sum() + candidate.weights[columns].sum())
        if len(rows) and len(columns):
            likeness = compare.likeness(rows, columns)
            likeness = np.where(likeness > threshold, likeness, 0.0)
            first, second = _assigned(likeness * weights)
            gain = float((likeness * weights)[first, second].sum())
            alike = likeness[first, second] >= MATCH
            alone[0][rows[first[alike]]] = False
            alone[1][columns[second[alike]]] = False
        tallies[number] = (gain, weight)
    sides = (_by_size(areas[mask]) for areas, mask in zip((compare.left, compare.right), alone, strict=True))
    return _tallied(tallies, *sides)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Two answers' objects in a form that both have: `left` [N] and `right` [M] are their areas."""

    stable: _Regions
    candidate: _Regions
    form: Literal["labels", "points", "masks", "boxes"]
    left: Floats
    right: Floats
    joint: NDArray[np.int64] | None = None

    def likeness(self, rows: Indices, columns: Indices) -> Floats:
        """Return how alike each of stable's objects `rows` and each of the candidate's `columns` are, 0 to 1."""
        left, right = self.left[rows, None], self.right[None, columns]
        if self.joint is not None:
            both = self.joint[np.ix_(rows, columns)]
            return np.asarray(both / np.maximum(left + right - both, 1.0))
        if self.form == "masks":
            return self._of_masks(rows, columns)
        assert self.stable.boxes is not None
        assert self.candidate.boxes is not None
        overlaps = _box_iou(self.stable.boxes[rows], self.candidate.boxes[columns])
        if self.form == "boxes":
            return overlaps
        assert self.stable.points is not None
        assert self.candidate.points is not None
        areas = (left + right) / 2 * _BODY
        return np.minimum(overlaps, _point_similarity(self.stable.points[rows], self.candidate.points[columns], areas))

    def _of_masks(self, rows: Indices, columns: Indices) -> Floats:
        masks = [
            [regions.masks[index] for index in indices]
            for regions, indices in ((self.stable, rows), (self.candidate, columns))
            if regions.masks is not None
        ]
        x, y, width, height = (side[:, None] for side in coco.toBbox(masks[0]).T)
        u, v, breadth, depth = coco.toBbox(masks[1]).T
        meet = (x < u + breadth) & (u < x + width) & (y < v + depth) & (v < y + height)
        lengths = [np.array([len(mask["counts"]) for mask in side]) for side in masks]
        if ((lengths[0][:, None] + lengths[1][None, :]) * meet).sum() > MOST_RUN_BYTES:
            raise _IncomparableError
        overlaps = np.asarray(coco.iou(*masks, [0] * len(columns)), np.float64)
        overlaps[(self.left[rows, None] + self.right[None, columns]) == 0] = 1.0  # two empty masks are equal
        return overlaps


def _comparison(stable: _Regions, candidate: _Regions) -> _Comparison:
    sides = (stable, candidate)
    if stable.labels is not None and candidate.labels is not None:
        joint = _joint_pixels(stable, candidate)
        left, right = joint.sum(1)[:-1].astype(np.float64), joint.sum(0)[:-1].astype(np.float64)
        return _Comparison(stable, candidate, "labels", left, right, joint)
    filled = [side for side in sides if len(side.classes)]
    if all(side.masks is not None for side in filled):
        left, right = (np.asarray(coco.area(side.masks or []), np.float64).reshape(-1) for side in sides)
        return _Comparison(stable, candidate, "masks", left, right)
    if any(side.boxes is None for side in filled):
        raise _IncomparableError
    left, right = (_box_areas(side.boxes) if side.boxes is not None else np.zeros(0) for side in sides)
    points = [side.points.shape[1:] for side in filled if side.points is not None]
    if (len(points) < len(filled) and points) or len(set(points)) > 1:
        raise _IncomparableError
    return _Comparison(stable, candidate, "points" if points else "boxes", left, right)


def _box_areas(boxes: Floats) -> Floats:
    sides = np.nan_to_num(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), posinf=0.0)
    return np.asarray(sides.prod(1))


def _box_iou(left: Floats, right: Floats) -> Floats:
    """Return the IoU of boxes, [N, 4] and [M, 4]; 0 where a box is not finite, 1 of equal ones."""
    least, most = (function(left[:, None], right[None]) for function in (np.minimum, np.maximum))
    both = np.maximum(least[..., 2:] - most[..., :2], 0.0).prod(-1)
    either = _box_areas(left)[:, None] + _box_areas(right)[None] - both
    overlaps = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    equal = (left[:, None] == right[None]).all(-1)
    return np.where(equal, 1.0, np.nan_to_num(overlaps, nan=0.0, posinf=0.0, neginf=0.0))


def _point_similarity(left: Floats, right: Floats, areas: Floats) -> Floats:
    """Return COCO's object keypoint similarity [N, M] at `areas` [N, M], weighted by the points' scores."""
    sigmas = SIGMAS if left.shape[1] == len(SIGMAS) else np.full(left.shape[1], SIGMA)
    squared = ((left[:, None, :, :2] - right[None, :, :, :2]) ** 2).sum(-1)
    alike = np.exp(-squared / (2 * sigmas) ** 2 / (areas[..., None] + np.spacing(1)) / 2)
    weights = _weights(left[:, None, :, 2]) + _weights(right[None, :, :, 2])
    return np.asarray(np.nan_to_num((alike * weights).sum(-1) / weights.sum(-1), nan=0.0))


def _assigned(gains: Floats) -> tuple[Indices, Indices]:
    """Return the pairs (row, column) of the assignment with the most gain; the pairs without any are left out."""
    if max(gains.shape) > MOST_ASSIGNED:
        rows, columns = _greedy(gains)
    elif gains.shape[0] > gains.shape[1]:
        columns, rows = _hungarian(-gains.T)
    else:
        rows, columns = _hungarian(-gains)
    paired = gains[rows, columns] > 0
    return rows[paired], columns[paired]


def _greedy(gains: Floats) -> tuple[Indices, Indices]:
    free = [np.ones(length, bool) for length in gains.shape]
    pairs = []
    rows, columns = np.nonzero(gains)
    for index in np.argsort(-gains[rows, columns], kind="stable"):
        row, column = rows[index], columns[index]
        if free[0][row] and free[1][column]:
            free[0][row] = free[1][column] = False
            pairs.append((row, column))
    found = np.array(pairs, np.intp).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _hungarian(costs: Floats) -> tuple[Indices, Indices]:
    """Return rows and columns of the assignment of least cost; costs [N, M] with N at most M.

    By shortest augmenting paths, as in Jonker and Volgenant (1987): row by row, with a potential of each row and column
    by which no cost is negative.
    """
    count, width = costs.shape
    row_of = np.full(width, -1, np.intp)
    row_potential, potential = np.zeros(count), np.zeros(width)
    for new in range(count):
        row, shortest = new, 0.0
        distances, before = np.full(width, np.inf), np.full(width, -1, np.intp)
        done = np.zeros(width, bool)
        column = -1
        while row >= 0:
            through = shortest + costs[row] - row_potential[row] - potential
            nearer = ~done & (through < distances)
            distances[nearer], before[nearer] = through[nearer], column
            column = int(np.argmin(np.where(done, np.inf, distances)))
            shortest, row = float(distances[column]), int(row_of[column])
            done[column] = True
        reached = done & (row_of >= 0)
        row_potential[row_of[reached]] += shortest - distances[reached]
        row_potential[new] += shortest
        potential[done] -= shortest - distances[done]
        while column >= 0:
            previous = int(before[column])
            row_of[column] = row_of[previous] if previous >= 0 else new
            column = previous
    columns = np.flatnonzero(row_of >= 0)
    return row_of[columns], columns


def _tallied(
    tallies: Mapping[int, tuple[float, float]],
    stable_only: SizeCounts = (0, 0, 0),
    candidate_only: SizeCounts = (0, 0, 0),
) -> Agreement:
    """Return the agreement of (gain, weight) by class; one of nothing at all is 1."""
    heaviest = sorted(tallies, key=lambda number: (-tallies[number][1], number))
    joined = dict(sorted((number, tallies[number]) for number in heaviest[:MOST_CLASSES]))
    if rest := [tallies[number] for number in heaviest[MOST_CLASSES:]]:
        joined[OTHER_CLASSES] = (sum(gain for gain, _ in rest), sum(weight for _, weight in rest))
    gain, weight = (sum(each[part] for each in tallies.values()) for part in (0, 1))
    value = min(gain / weight, 1.0) if weight else 1.0
    classes = {number: min(won / most, 1.0) for number, (won, most) in joined.items()}
    weights = {number: most for number, (_, most) in joined.items()}
    return Agreement(value, classes, stable_only, candidate_only, weights)


def _by_size(areas: Floats) -> SizeCounts:
    small, large = int((areas < SMALL_PIXELS).sum()), int((areas >= LARGE_PIXELS).sum())
    return small, len(areas) - small - large, large
