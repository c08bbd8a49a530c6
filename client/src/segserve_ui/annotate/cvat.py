"""CVAT's serverless functions: what its server reads from Nuclio, and what the functions take and return."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from pydantic import Base64Bytes, BaseModel, Field

from segserve.calls.prompts import Box, Click
from segserve.exports.label_studio import Json
from segserve.results.annotation import AnnotatedResult, foreground
from segserve.results.masks import EncodedMask
from segserve.results.values import ModelInfo
from segserve_common.drawing.overlays import is_background
from segserve_ui.annotate.label_studio import MAX_CLICKS

Point: TypeAlias = tuple[float, float]


class Invocation(BaseModel):
    """The body of a call: `image` is a file, points are pixels of it, `obj_bbox` two corners or nothing."""

    image: Base64Bytes
    threshold: float | None = Field(None, ge=0, le=1)
    pos_points: list[Point] = Field([], max_length=MAX_CLICKS)
    neg_points: list[Point] = Field([], max_length=MAX_CLICKS)
    obj_bbox: tuple[()] | tuple[Point, Point] | None = None

    def prompts(self) -> list[Click | Box]:
        """Return the clicks and the box; raises `BadRequestError` for a box without an area."""
        prompts: list[Click | Box] = [Click(*point) for point in self.pos_points]
        prompts += [Click(*point, foreground=False) for point in self.neg_points]
        if self.obj_bbox:
            (x1, y1), (x2, y2) = self.obj_bbox
            prompts.append(Box(min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)))
        return prompts


def function(info: ModelInfo, *, promptable: bool) -> Json:
    """Return a model as a function: an interactor if it is promptable, else a detector of its classes."""
    kind = "mask" if "MASKS" in info.outputs else "rectangle"
    labels = [{"id": each.id, "name": each.name, "type": kind} for each in info.classes if not is_background(each.name)]
    about = {"name": info.model, "type": "detector", "spec": json.dumps(labels)}
    if promptable:  # CVAT takes interactors from version 2 on
        about |= {"type": "interactor", "spec": "[]", "version": "2", "min_pos_points": "0", "min_neg_points": "0"}
        about |= {"startswith_box_optional": "true", "help_message": "Click on the object, or draw a box around it"}
    text = f"{info.model}, revision {info.revision}"
    return {"metadata": {"name": info.model, "annotations": about}, "spec": {"description": text}, "status": {}}


def shapes(result: AnnotatedResult) -> Iterator[Json]:
    """Yield a detector's objects: masks, each in its box with the outline of its most extended part, or boxes.

    `mask` is the pixels of the box row by row, then the box: left, top, right and bottom, its last pixels included.
    """
    for one in foreground(result.annotations()):
        found = {"confidence": str(1.0 if one.score is None else one.score), "label": one.class_name}
        if one.mask is None:
            yield found | {"type": "rectangle", "points": list(one.box)}
        elif (patch := one.mask.patch()).pixels.size:
            x1, y1, x2, y2 = patch.box
            mask = [*patch.pixels.ravel().astype(int).tolist(), x1, y1, x2 - 1, y2 - 1]
            yield found | {"type": "mask", "mask": mask, "points": np.ravel(_outline(one.mask)).tolist()}


def interaction(result: AnnotatedResult) -> Json:
    """Return an interactor's answer: the mask of the whole image, rows of 0 and 255, and the same outline."""
    found = next((one.mask for one in result.annotations() if one.mask is not None), EncodedMask.empty(*result.size))
    return {"mask": (found.bitmap * np.uint8(255)).tolist(), "points": _outline(found)}


def _outline(mask: EncodedMask) -> list[list[float]]:
    rings = (part.outer for part in mask.parts())
    ring: list[list[float]] = max(rings, key=lambda ring: np.ptp(ring, axis=0).prod(), default=np.empty(0)).tolist()
    return ring
