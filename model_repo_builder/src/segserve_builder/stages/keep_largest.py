"""The stage that keeps the largest region of each class or instance."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.stages.remove_small_regions import ClassId
from segserve_builder.values import Instances, LabelMap, ValueType


class KeepLargest(Stage):
    """Keep only the largest connected region of every class of a label map, or of every instance's mask.

    Removed pixels become class 0, whose own regions are kept. Among equally large regions the one whose first pixel
    comes first is kept, row by row from the top left.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LABELS, ValueType.INSTANCES})

    connectivity: Literal[4, 8] = Field(4, description="Whether pixels connect by edges (4) or also by corners (8).")
    classes: tuple[ClassId, ...] | None = Field(
        None, min_length=1, description="Ids of the classes that keep one region only. Default: all."
    )

    def __call__(self, value: LabelMap | Instances, request: RequestOptions) -> LabelMap | Instances:
        """Return the value with one region per class or instance."""
        from segserve_builder.imaging.masks import map_masks
        from segserve_builder.kernels.regions import keep_largest

        if isinstance(value, LabelMap):
            return replace(value, labels=keep_largest(value.labels, self.connectivity, self.classes))
        return map_masks(value, lambda bitmap: keep_largest(bitmap, self.connectivity), classes=self.classes)
