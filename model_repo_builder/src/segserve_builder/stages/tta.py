"""The inference step that asks the network about several views of the image."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from segserve_builder.stages.base import Stage
from segserve_builder.values import ValueType


class Tta(Stage):
    """Run the network also over flipped, turned and scaled views of the image, and average what it says.

    Views are all combinations of what is listed with the image as it is; of two that are the same (both flips, and a
    turn by 180 degrees) one counts. Answers are turned back and averaged at the resolution of the image's own logits.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS})

    flips: tuple[Literal["horizontal", "vertical", "both"], ...] = Field(
        (), description="Mirror images: left and right swapped, top and bottom swapped, or both."
    )
    rotations: tuple[Literal[90, 180, 270], ...] = Field((), description="Turns, in degrees counterclockwise.")
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(
        (), max_length=8, description="Sizes, as multiples of the image's; 1 always takes part."
    )
    multiple_of: int = Field(32, ge=1, le=1024, description="Scaled sizes are rounded to multiples of it.")
    merge: Literal["logits", "softmax", "sigmoid"] = Field(
        "logits",
        description="What is averaged: logits, or probabilities (softmax of classes that exclude each other, sigmoid "
        "of those that do not), of which logits are made again.",
    )

    @model_validator(mode="after")
    def _has_views(self) -> Self:
        if not (self.flips or self.rotations or self.scales):
            raise ValueError("tta names no views: give flips, rotations or scales")
        return self
