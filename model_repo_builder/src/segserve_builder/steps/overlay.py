"""Draws an answer on its image, as the client's overlays do, and writes the picture as a file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segserve_builder.errors import BadImageError
from segserve_builder.kernels.rle_reader import decode
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.encode import encode, label_areas
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.values import ClassMasks, Encoded, Instances, LabelMap, Panoptic
from segserve_common.drawing.canvas import Patch
from segserve_common.drawing.overlays import Drawing, DrawnShape, Style, draw_labels, draw_objects, draw_segments
from segserve_common.drawing.palette import colour_of, palette

# Photographs gain little by slower levels.
_OPTIONS: Final[dict[str, dict[str, int]]] = {"png": {"compress_level": 1}, "webp": {"quality": 90, "method": 0}}
MOST_WEBP_PIXELS: Final = 16383
_NO_BOX: Final = (0.0, 0.0, 0.0, 0.0)


def overlay(value: Any, pipeline: Pipeline, image: bytes, file_format: str) -> bytes:
    """Return the image with an answer drawn on it, as a file of a format of `OVERLAYS`.

    The picture has the image's size as decoded; masks are decoded one by one, so that it also bounds the memory. Raises
    `BadImageError` for an image that cannot be decoded, or whose sides are too long for a WebP.
    """
    pixels = pipeline.decode(Encoded(image, "RGB", "UINT8", pipeline.input.max_pixels), RequestOptions()).pixels
    if file_format == "webp" and max(pixels.shape) > MOST_WEBP_PIXELS:
        size = "{} x {}".format(*pixels.shape)
        raise BadImageError(f"a WebP has at most {MOST_WEBP_PIXELS} pixels a side, the image {size}: request png")
    names = {item.id: item.name for item in pipeline.classes}
    colours = {item.id: colour_of(item.colour) or palette(item.id) for item in pipeline.classes}
    drawing = partial(Drawing, Image.fromarray(pixels), colours=colours)
    if isinstance(value, Panoptic):
        found = []
        for one in value.segments:
            x1, y1, x2, y2 = box = _of_label(value.ids, one.id).box
            patch = partial(_of_label, value.ids[y1:y2, x1:x2], one.id, x1, y1)
            name = names[one.class_id]
            found.append(DrawnShape(one.class_id, name, one.score, box, patch, is_thing=one.is_thing))
        drawn = draw_segments(drawing(found), Style(legend=True))
    elif isinstance(value, LabelMap | ClassMasks):
        if isinstance(value, LabelMap):
            areas = label_areas(value.labels, len(names))
            patches = [partial(_of_label, value.labels, each) for each in names]
        else:
            areas, patches = value.areas, [partial(_of_runs, counts, pixels.shape[:2]) for counts in value.masks]
        maps = [DrawnShape(*item, None, _NO_BOX, patch) for item, patch in zip(names.items(), patches, strict=True)]
        drawn = draw_labels(drawing(maps), dict(enumerate(areas.tolist())), Style(legend=True))
    else:
        drawn = draw_objects(drawing(list(_objects(value, pipeline, names))), Style())
    buffer = BytesIO()
    drawn.save(buffer, file_format, **_OPTIONS[file_format])
    return buffer.getvalue()


def _objects(value: Any, pipeline: Pipeline, names: dict[int, str]) -> Iterator[DrawnShape]:
    outputs = frozenset({"BOXES", "SCORES", "CLASSES", "KEYPOINTS"})
    boxes, scores, classes, *points = encode(value, pipeline, RequestOptions(), outputs).values()
    for index, class_id in enumerate(classes.tolist()):
        name, score, box = names.get(class_id, str(class_id)), float(scores[index]), tuple(boxes[index].tolist())
        patch = (
            partial(_of_runs, value.masks[index], (value.height, value.width)) if isinstance(value, Instances) else None
        )
        yield DrawnShape(class_id, name, score, box, patch, points[0][index] if points else None)


def _of_label(labels: NDArray[Any], label: int, x: int = 0, y: int = 0) -> Patch:
    return Patch.of(labels == label, x, y)


def _of_runs(counts: bytes, size: tuple[int, int]) -> Patch:
    window = decode(counts, *size)
    return Patch(window.left, window.top, window.bitmap.view(np.bool_))
