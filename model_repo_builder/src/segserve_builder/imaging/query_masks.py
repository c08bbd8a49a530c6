"""Classes, boxes and masks of a transformer decoder's queries."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segserve_builder.errors import SignatureError
from segserve_builder.imaging.probabilities import sigmoid, softmax
from segserve_builder.sampling import Axis, axes
from segserve_builder.values import Float32, Int32, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class QuerySegments:
    """The segment of each pixel: ids from 1, uint16 (H, W), 0 for none.

    `classes` int32 (S,) and `scores` float32 (S,) belong to the segments 1, 2, ...
    """

    ids: NDArray[Any]
    classes: Int32
    scores: Float32


def shares(queries: Queries) -> Float32:
    """Return the probability of each class and, last, of "nothing", float32 (Q, C + 1).

    Raises `SignatureError` if the network's classes have sigmoids of their own.
    """
    if queries.sigmoid:
        raise SignatureError(
            "each class has a sigmoid of its own, and no query is of nothing; take detectionQueries or instanceQueries"
        )
    return softmax(queries.logits)


def best_pairs(queries: Queries, most: int | None = None) -> tuple[Int32, Int32, Float32]:
    """Return query, class and probability of the best pairs, by default as many as there are queries, best first.

    They are int32, int32 and float32 (N,); equal pairs keep their order.
    """
    import numpy as np

    classes = sigmoid(queries.logits) if queries.sigmoid else shares(queries)[:, :-1]
    pairs = np.argsort(-classes, axis=None, kind="stable")[: most or len(classes)]
    which, numbers = np.divmod(pairs.astype(np.int32), np.int32(classes.shape[1]))
    return which, numbers, classes.reshape(-1)[pairs]


def corners(queries: Queries) -> Float32:
    """Return boxes x1 y1 x2 y2 in pixels of the original image, not clipped, float32 (Q, 4).

    Raises `SignatureError` if the network gives no boxes.
    """
    import numpy as np

    boxes, p = queries.boxes, queries.transform
    if boxes is None:
        raise SignatureError("the network's queries have masks but no boxes; use panopticQueries")
    centre, half = boxes[:, :2], boxes[:, 2:] * np.float32(0.5)
    relative = np.concatenate([centre - half, centre + half], axis=1)
    if queries.within_image:
        return np.asarray(relative * np.array([p.width, p.height] * 2, np.float32), np.float32)
    x_scale, y_scale = p.scale
    size = np.array([p.input_width * x_scale, p.input_height * y_scale] * 2, np.float32)
    shift = np.array([p.left * x_scale, p.top * y_scale] * 2, np.float32)
    scaled: Float32 = relative * size - shift
    return scaled


def mask_logits(queries: Queries, which: Any, size: tuple[int, int] | None) -> tuple[Float32, Axis, Axis]:
    """Return mask logits (K, h, w) of some queries over the network's whole input, and the image's axes in them.

    They are interpolated to `size` where one is given. Raises `SignatureError` if the network gives no masks. They
    are float32.
    """
    from segserve_builder.kernels.queries import resample

    if queries.masks is None:
        raise SignatureError("the network's queries have boxes and no masks; take detectionQueries")
    masks: Float32 = queries.masks[which]
    rows, columns = axes(queries.transform, *masks.shape[1:])
    if size is None:
        return masks, rows, columns
    finer = resample(masks, _onto(size[0], masks.shape[1], rows), _onto(size[1], masks.shape[2], columns))
    return finer, *axes(queries.transform, *size)


def _onto(size: int, cells: int, content: Axis) -> Axis:
    """Return the axis of a finer grid over the same input; it also samples only cells that show the image."""
    return Axis(size, content.first, content.cells, cells / size, -content.first - 0.5)


def content(values: Float32, rows: Axis, columns: Axis) -> Float32:
    """Return the cells of `values` (K, h, w) that show the image.

    They are float32, a view.
    """
    return values[:, rows.first : rows.first + rows.cells, columns.first : columns.first + columns.cells]


def nearest_first(axis: Axis) -> Int32:
    """Return each cell's first pixel by torch's nearest interpolation, int32 (cells + 1,), the last the axis' size."""
    import numpy as np

    return np.searchsorted(axis.nearest(), np.arange(axis.cells + 1, dtype=np.int32)).astype(np.int32)


def exclusive_segments(
    queries: Queries,
    threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    fuse: Collection[int],
    size: tuple[int, int] | None,
    own_pixels: bool = False,
) -> QuerySegments:
    """Give every pixel to one query, as the image processors of MaskFormer, Mask2Former and DETR do.

    Queries take part whose best class is one and scores above `threshold`; a pixel goes to the one whose score times
    probability is greatest there. What a query gets counts where it is more than the part `overlap_threshold` of the
    pixels at which it reaches `mask_threshold`. Queries of a class of `fuse` become one segment, which has the best
    of their scores. With `own_pixels` pixels are given as by EoMT's: logits are sampled, not probabilities,
    `mask_threshold` applies to the probability alone, and a query gets none of the pixels below it.
    """
    import numpy as np

    from segserve_builder.kernels.queries import rename, winners

    best, scores = best_classes(shares(queries))
    which = np.flatnonzero((best < queries.logits.shape[1] - 1) & (scores > np.float32(threshold)))
    if not len(which):
        height, width = queries.transform.height, queries.transform.width
        return QuerySegments(np.zeros((height, width), np.uint16), np.empty(0, np.int32), np.empty(0, np.float32))
    logits, rows, columns = mask_logits(queries, which, size)
    best, scores = best[which], scores[which]
    if own_pixels:
        labels, areas, above, own = _winners_of_logits(logits, scores, rows, columns, mask_threshold)
    else:
        (labels, areas, above), own = winners(sigmoid(logits), scores, rows, columns, mask_threshold), None
    names, classes, best_scores = np.zeros(len(which), np.uint16), list[int](), list[float]()
    fused: dict[int, int] = {}
    held = areas if own is None else np.bincount(labels[own], minlength=len(which))
    for k in np.flatnonzero((held > 0) & (above > 0)):
        if not np.float32(areas[k]) / np.float32(above[k]) > overlap_threshold:
            continue
        class_id = int(best[k])
        names[k] = fused.get(class_id, len(classes) + 1)
        if names[k] <= len(classes):
            best_scores[names[k] - 1] = max(best_scores[names[k] - 1], float(scores[k]))
            continue
        classes.append(class_id)
        best_scores.append(float(scores[k]))
        if class_id in fuse:
            fused[class_id] = len(classes)
    rename(labels, names)
    if own is not None:
        labels[~own] = 0
    return QuerySegments(labels, np.array(classes, np.int32), np.array(best_scores, np.float32))


def _winners_of_logits(
    logits: Float32, scores: Float32, rows: Axis, columns: Axis, threshold: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return `winners` of logits that are sampled before their sigmoid, and whether its probability alone reaches it.

    They are uint16 (H, W), int64 (K,) twice, and bool (H, W). One query at a time has the image's size.
    """
    import numpy as np

    from segserve_builder.kernels.queries import resample

    best = np.full((rows.size, columns.size), -1, np.float32)
    labels, own = np.zeros(best.shape, np.uint16), np.zeros(best.shape, np.bool_)
    above = np.zeros(len(scores), np.int64)
    for k, score in enumerate(scores):
        probability = sigmoid(resample(logits[k : k + 1], rows, columns))[0]
        reached = probability >= np.float32(threshold)
        above[k] = np.count_nonzero(reached)
        wins = score * probability > best
        np.copyto(best, score * probability, where=wins)
        np.copyto(own, reached, where=wins)
        labels[wins] = k
    return labels, np.bincount(labels.ravel(), minlength=len(scores)), above, own


def best_classes(probabilities: Float32) -> tuple[Int32, Float32]:
    """Return each query's most probable class and its probability, int32 and float32 (Q,), of (Q, C)."""
    import numpy as np

    best = probabilities.argmax(axis=1)
    scores: Float32 = probabilities[np.arange(len(best)), best]
    return best.astype(np.int32), scores
