"""The inference step that runs the network over overlapping tiles."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from segserve_builder.stages.base import Stage
from segserve_builder.values import ValueType


class TiledInference(Stage):
    """Run the network over overlapping tiles of the image and blend their logits.

    Tiles lie as MONAI's sliding window lays them, at multiples of multipleOf; where they reach beyond the image, as all
    do in an image smaller than a tile, it is padded. What the network says near a tile's edge counts less.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS})

    height: int = Field(ge=1, le=16_384, description="A tile's height, in pixels of the network's input.")
    width: int = Field(ge=1, le=16_384, description="A tile's width.")
    overlap: float = Field(
        0.25, ge=0, description="What neighbours share: a part of the tile where it is below 1, else pixels."
    )
    blend: Literal["gaussian", "hann", "linear", "constant"] = Field(
        "gaussian",
        description="How a tile counts towards its edges: a Gaussian (MONAI's, sigma an eighth of the tile), a Hann "
        "window, a straight fall, or everywhere the same.",
    )
    padding: Literal["reflect", "edge", "constant"] = Field(
        "reflect", description="What lies beyond the image: its mirror image, its outermost pixels, or padValue."
    )
    pad_value: float = Field(0.0, description="What constant padding consists of, as the network takes it.")
    multiple_of: int = Field(
        32, ge=1, le=1024, description="Tiles start at multiples of it; the network's stride must divide it."
    )

    @model_validator(mode="after")
    def _fits_the_tile(self) -> Self:
        least = min(self.height, self.width)
        if self.overlap >= 1 and (self.overlap >= least or self.overlap != int(self.overlap)):
            raise ValueError(f"overlap is {self.overlap:g}; allowed are parts below 1 and whole pixels below {least}")
        if self.multiple_of > least:
            raise ValueError(f"multipleOf is {self.multiple_of}; a tile of {self.height} x {self.width} allows {least}")
        return self

    def overlap_pixels(self, size: int) -> int:
        """Return what tiles share along a side of `size` pixels (MONAI rounds the step between them down)."""
        return int(self.overlap) if self.overlap >= 1 else size - int(size * (1 - self.overlap))
