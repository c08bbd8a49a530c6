"""The stage that turns integer pixels into float32, for networks whose graph does not."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from segserve_builder.stages.base import Stage
from segserve_builder.values import Image, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve_builder.stages.base import Request

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Normalise(Stage):
    """Turn pixels into float32: (pixel * scale - mean) / std.

    The formula is computed in float64 and rounded to float32 once. `scale` is 1/255 for UINT8 and 1/65535 for
    UINT16 unless given (the pixel is then divided, not multiplied); `mean` and `std` are in scaled units.
    """

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.IMAGE})

    scale: Positive | None = Field(
        None, description="What pixels are multiplied by; 1/255 (UINT16: 1/65535) unless given."
    )
    mean: tuple[Finite, ...] = Field((0.0,), min_length=1, max_length=3, description="One number, or one a channel.")
    std: tuple[Positive, ...] = Field((1.0,), min_length=1, max_length=3, description="One number, or one a channel.")

    def __call__(self, value: Image, request: Request) -> Image:
        """Return the image as float32 (H, W, C)."""
        import cv2
        import numpy as np

        pixels = value.pixels
        channels = pixels.shape[2]
        table = _table(self.scale, self.mean, self.std, pixels.dtype.itemsize, channels)
        if pixels.dtype == np.uint8:
            floats = cv2.LUT(np.ascontiguousarray(pixels), table).reshape(pixels.shape)
        else:
            floats = np.empty(pixels.shape, np.float32)
            for channel in range(channels):
                floats[..., channel] = table[0, :, channel][pixels[..., channel]]
        return Image(floats, value.placement)


@lru_cache(maxsize=16)
def _table(
    scale: float | None, mean: tuple[float, ...], std: tuple[float, ...], itemsize: int, channels: int
) -> NDArray[Any]:
    """Return the float32 of every pixel value, shaped (1, 256 or 65536, C): it is faster than arithmetic."""
    import numpy as np

    largest = 256**itemsize - 1
    pixel = np.arange(largest + 1, dtype=np.float64)[None, :, None]
    scaled = pixel / largest if scale is None else pixel * scale
    offset, spread = (np.broadcast_to(np.asarray(numbers, np.float64), (channels,)) for numbers in (mean, std))
    return np.ascontiguousarray((scaled - offset) / spread, dtype=np.float32)
