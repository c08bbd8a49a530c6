"""LabelMe's JSON, as labelme 5 and 6 read it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy as np

from segserve.results.annotation import AnnotatedResult, Annotation, foreground
from segserve.results.images import ImageLike, picture
from segserve.results.outlines import through_centres
from segserve.results.values import Shapes
from segserve_common.drawing.canvas import Patch
from segserve_common.errors import BadRequestError

Json: TypeAlias = dict[str, Any]

VERSION: Final = "5.5.0"


def label_file(result: AnnotatedResult, file_name: str, *, image: ImageLike | None, shapes: Shapes) -> Json:
    """Return the content of a label file; see `Segmentation.to_labelme`.

    Raises `BadRequestError` if the size of the image differs from the result's.
    """
    height, width = result.size
    drawn = [shape for one in foreground(result.annotations()) for shape in _shapes(one, shapes)]
    return {
        "version": VERSION,
        "flags": {},
        "shapes": drawn,
        "imagePath": file_name,
        "imageData": None if image is None else _embedded(image, result.size),
        "imageHeight": height,
        "imageWidth": width,
    }


def _shapes(annotation: Annotation, shapes: Shapes) -> Iterator[Json]:
    if annotation.mask is None:
        x1, y1, x2, y2 = annotation.box
        yield _shape(annotation, "rectangle", [[x1, y1], [x2, y2]])
    elif shapes == "mask":
        patch = annotation.mask.patch()
        if patch.pixels.size:
            x1, y1, x2, y2 = patch.box
            yield _shape(annotation, "mask", [[x1, y1], [x2 - 1, y2 - 1]]) | {"mask": _png(patch)}
    else:
        # LabelMe also draws the pixels of a polygon's points: a polygon along pixel edges would be one pixel too large.
        for polygon in annotation.mask.polygons:
            ring = through_centres(np.array(polygon).reshape(-1, 2))
            yield _shape(annotation, "polygon", ring.tolist())
    for number, (x, y, score) in enumerate([] if annotation.points is None else annotation.points.tolist()):
        yield _shape(annotation, "point", [[x, y]]) | {"label": f"{annotation.class_name}-{number}", "score": score}


def _shape(annotation: Annotation, kind: str, points: list[list[Any]]) -> Json:
    return {
        "label": annotation.class_name,
        "points": points,
        "group_id": annotation.number,
        "description": "" if annotation.score is None else f"score {annotation.score:.3f}",
        "shape_type": kind,
        "flags": {},
        "score": annotation.score,
    }


def _png(patch: Patch) -> str:
    from PIL import Image

    return _base64(Image.fromarray(patch.pixels.astype(np.uint8)))


def _embedded(image: ImageLike, size: tuple[int, int]) -> str:
    opened = picture(image)
    if (opened.height, opened.width) != size:
        raise BadRequestError(
            f"the image is {opened.height} x {opened.width} (height x width), the result {size[0]} x {size[1]}"
        )
    return _base64(opened)


def _base64(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
