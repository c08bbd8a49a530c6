"""The stage that normalises integer pixels as float32, for networks whose graph does not."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Image, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Normalise(Stage):
    """Normalise pixels as float32: (pixel * scale - mean) / std.

    The formula is computed in float64 and rounded to float32 once. `scale` is 1/255 for UINT8 and 1/65535 for
    UINT16 by default (pixels are then divided, not multiplied); `mean` and `std` are in scaled units.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.IMAGE})

    scale: Positive | None = Field(None, description="Factor of the pixels. Default: 1/255 (UINT16: 1/65535).")
    mean: tuple[Finite, ...] = Field(
        (0.0,), min_length=1, max_length=3, description="Mean of scaled pixels, one number or one per channel."
    )
    std: tuple[Positive, ...] = Field(
        (1.0,),
        min_length=1,
        max_length=3,
        description="Standard deviation of scaled pixels, one number or one per channel.",
    )

    def __call__(self, value: Image, request: RequestOptions) -> Image:
        """Return the image as float32 (H, W, C)."""
        return Image(self.tensor(value.pixels, half=False, channels_first=False), value.transform)

    def tensor(self, pixels: NDArray[Any], *, half: bool, channels_first: bool) -> NDArray[Any]:
        """Return the normalised pixels as (C, H, W) or (H, W, C), with `half` rounded to float16, in one pass."""
        import numpy as np

        from segserve_builder.kernels.planes import affine_planes, looked_up

        if pixels.dtype == np.float32:  # `resize` has not rounded them: they are of UINT8
            factor, offset = _factors(self.scale, self.mean, self.std, 1, pixels.shape[2])
            planes = affine_planes(pixels, factor, offset).astype("float16" if half else "float32", copy=False)
            return planes if channels_first else np.ascontiguousarray(planes.transpose(1, 2, 0))
        dtype = "float16" if half else "float32"
        options = (self.scale, self.mean, self.std, pixels.dtype.itemsize, pixels.shape[2])
        if channels_first and not half and pixels.dtype == np.uint8:
            arithmetic = _arithmetic(*options)
            if arithmetic is not None:
                return affine_planes(pixels, *arithmetic)
        return looked_up(pixels, _table(*options, dtype), channels_first)


@lru_cache(maxsize=16)
def _table(
    scale: float | None, mean: tuple[float, ...], std: tuple[float, ...], itemsize: int, channels: int, dtype: str
) -> NDArray[Any]:
    """Return the normalised value of every pixel value, float32 (C, 256 or 65536)."""
    import numpy as np

    largest = 256**itemsize - 1
    pixel = np.arange(largest + 1, dtype=np.float64)
    scaled = pixel / largest if scale is None else pixel * scale
    offset, spread = (np.broadcast_to(np.asarray(numbers, np.float64), (channels,))[:, None] for numbers in (mean, std))
    return np.ascontiguousarray((scaled - offset) / spread, np.float32).astype(dtype)


def _factors(
    scale: float | None, mean: tuple[float, ...], std: tuple[float, ...], itemsize: int, channels: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the formula as a factor and an offset per channel, both float64 (C,)."""
    import numpy as np

    offset, spread = (np.broadcast_to(np.asarray(numbers, np.float64), (channels,)) for numbers in (mean, std))
    return (1 / (256**itemsize - 1) if scale is None else scale) / spread, -offset / spread


@lru_cache(maxsize=16)
def _arithmetic(
    scale: float | None, mean: tuple[float, ...], std: tuple[float, ...], itemsize: int, channels: int
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return a factor and an offset per channel, which are faster than the table, if they give the table's numbers.

    They round differently from the formula in float64, which rarely shows in float32.
    """
    import numpy as np

    from segserve_builder.kernels.planes import affine_planes

    table = _table(scale, mean, std, itemsize, channels, "float32")
    factor, offset = _factors(scale, mean, std, itemsize, channels)
    every = np.arange(table.shape[1], dtype=np.uint8)[None, :, None].repeat(channels, 2)
    made = affine_planes(every, factor, offset)
    return (factor, offset) if np.array_equal(made[:, 0], table) else None
