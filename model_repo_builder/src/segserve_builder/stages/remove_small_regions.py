"""The stage that removes small regions."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Instances, LabelMap, ValueType

ClassId = Annotated[int, Field(ge=0, le=65535)]


class RemoveSmallRegions(Stage):
    """Remove connected regions of fewer pixels than minArea.

    In a label map a region is connected pixels of one class; removed ones become class 0, whose own regions are kept.
    In an instance it is a connected part of its mask; instances whose mask becomes empty are removed.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LABELS, ValueType.INSTANCES})

    min_area: int = Field(ge=1, description="Least area that is kept, in pixels of the original image.")
    connectivity: Literal[4, 8] = Field(4, description="Whether pixels connect by edges (4) or also by corners (8).")
    classes: tuple[ClassId, ...] | None = Field(
        None, min_length=1, description="Ids of the classes whose regions may be removed. Default: all."
    )

    def __call__(self, value: LabelMap | Instances, request: RequestOptions) -> LabelMap | Instances:
        """Return the value without its small regions."""
        from segserve_builder.imaging.masks import map_masks
        from segserve_builder.kernels.regions import drop_small

        if isinstance(value, LabelMap):
            return replace(value, labels=drop_small(value.labels, self.min_area, self.connectivity, self.classes))
        return map_masks(
            value, lambda bitmap: drop_small(bitmap, self.min_area, self.connectivity), classes=self.classes
        )
