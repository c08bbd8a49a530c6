"""The stage that runs the network over augmented views of the image."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from segserve_builder.stages.base import Stage
from segserve_builder.values import ValueType


class Tta(Stage):
    """Run the network over flipped, rotated and scaled views of the image too, and average the results.

    Views are all combinations of the options with the unchanged image; equal ones (both flips, and a rotation by 180
    degrees) count once. Results are rotated back and averaged at the resolution of the image's own logits.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS})

    flips: tuple[Literal["horizontal", "vertical", "both"], ...] = Field(
        (), description="Mirror images: left and right swapped, top and bottom swapped, or both."
    )
    rotations: tuple[Literal[90, 180, 270], ...] = Field((), description="Rotations, in degrees counterclockwise.")
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(
        (), max_length=8, description="Scales relative to the image; 1 is always included."
    )
    multiple_of: int = Field(
        32, ge=1, le=1024, description="Number of pixels that scaled sizes are rounded to multiples of."
    )
    merge: Literal["logits", "softmax", "sigmoid"] = Field(
        "logits",
        description="Quantity that is averaged: logits, or probabilities (softmax for exclusive classes, sigmoid for "
        "independent ones), which are turned back into logits.",
    )

    @model_validator(mode="after")
    def _has_views(self) -> Self:
        if not (self.flips or self.rotations or self.scales):
            raise ValueError("tta has no views: set flips, rotations or scales")
        return self
