"""The stage that runs the network over overlapping tiles."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from segserve_builder.stages.base import Stage
from segserve_builder.values import ValueType


class TiledInference(Stage):
    """Run the network over overlapping tiles of the image and blend their logits.

    Tiles are positioned as MONAI's sliding window does, at multiples of multipleOf; where they reach beyond the image,
    as in an image smaller than a tile, it is padded. Logits near a tile's edge have less weight.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS})

    height: int = Field(ge=1, le=16_384, description="Height of a tile, in pixels of the network's input.")
    width: int = Field(ge=1, le=16_384, description="Width of a tile, in pixels of the network's input.")
    overlap: float = Field(
        0.25, ge=0, description="Overlap of neighbouring tiles: a fraction of the tile if below 1, else pixels."
    )
    blend: Literal["gaussian", "hann", "linear", "constant"] = Field(
        "gaussian",
        description="Weight of a tile towards its edges: a Gaussian (MONAI's, sigma an eighth of the tile), a Hann "
        "window, a linear fall-off, or constant.",
    )
    padding: Literal["reflect", "edge", "constant"] = Field(
        "reflect", description="Padding beyond the image: its mirror image, its outermost pixels, or padValue."
    )
    pad_value: float = Field(0.0, description="Value of constant padding, in units of the network's input.")
    multiple_of: int = Field(
        32,
        ge=1,
        le=1024,
        description="Number of pixels that tiles start at multiples of; the network's stride must divide it.",
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
        """Return the overlap of tiles along a side of `size` pixels, in pixels (MONAI rounds the step down)."""
        return int(self.overlap) if self.overlap >= 1 else size - int(size * (1 - self.overlap))
