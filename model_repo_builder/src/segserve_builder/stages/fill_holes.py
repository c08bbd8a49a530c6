"""The stage that fills what a class or an instance encloses."""

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
    Where `connectivity` says that a class connects by edges, holes connect by corners as well, and the other way
    round, so that a hole never leaks through an outline that is connected.

    `over: background` gives the pixels of class 0 in it to the class; where they lie in holes of several classes, the
    smallest hole's gets them. `over: any` gives it all pixels, whatever their class, and the largest hole's gets them.
    Of equally large holes the class with the lowest id wins.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LABELS, ValueType.INSTANCES})

    max_area: int | None = Field(None, ge=1, description="Larger holes stay, in pixels; all are filled unless given.")
    connectivity: Literal[4, 8] = Field(
        4, description="Whether pixels of a class connect by edges (4) or also by corners (8); holes do the contrary."
    )
    over: Literal["background", "any"] = Field(
        "background", description="What is filled in a label map: pixels of class 0, or those of other classes too."
    )
    classes: tuple[ClassId, ...] | None = Field(
        None, min_length=1, description="The classes whose holes are filled; all unless given."
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
