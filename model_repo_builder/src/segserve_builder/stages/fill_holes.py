"""The stage that fills holes of classes and instances."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.stages.remove_small_regions import ClassId
from segserve_builder.values import Instances, LabelMap, ValueType


class FillHoles(Stage):
    """Fill the holes of every class of a label map but class 0, or of every instance's mask.

    A hole of a class is a connected region of pixels of any other classes that does not reach the edge of the image.
    If `connectivity` makes a class connect by edges, holes connect by corners as well, and vice versa, so that a hole
    never leaks through a connected outline.

    `over: background` assigns the hole's pixels of class 0 to the class; pixels in holes of several classes go to that
    of the smallest hole. `over: any` assigns all its pixels, whatever their class, and the largest hole wins. Among
    equally large holes the class with the lowest id wins.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LABELS, ValueType.INSTANCES})

    max_area: int | None = Field(
        None, ge=1, description="Largest area of a hole to fill, in pixels. Default: no limit."
    )
    connectivity: Literal[4, 8] = Field(
        4,
        description="Whether pixels of a class connect by edges (4) or also by corners (8); holes the other way round.",
    )
    over: Literal["background", "any"] = Field(
        "background", description="Pixels of a label map to fill: pixels of class 0, or of any other class."
    )
    classes: tuple[ClassId, ...] | None = Field(
        None, min_length=1, description="Ids of the classes whose holes are filled. Default: all."
    )

    def __call__(self, value: LabelMap | Instances, request: RequestOptions) -> LabelMap | Instances:
        """Return the value with its holes filled."""
        from segserve_builder.imaging.masks import map_masks
        from segserve_builder.kernels.holes import fill_holes

        if isinstance(value, LabelMap):
            everything = self.over == "any"
            filled = fill_holes(value.labels, self.connectivity, self.max_area, everything, self.classes)
            return replace(value, labels=filled)
        return map_masks(
            value, lambda bitmap: fill_holes(bitmap, self.connectivity, self.max_area), classes=self.classes
        )
