"""What a network takes: colour, order of axes, size, batch; read from its one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from segserve.cli.errors import CommandError

if TYPE_CHECKING:
    from segserve_builder.families.base import TensorSpec

COLOURS: Final[dict[int, Literal["RGB", "GREY"]]] = {3: "RGB", 1: "GREY"}


@dataclass(frozen=True)
class ImageInput:
    """A network's input; None is a size that is free. `single` inputs have no axis for a batch."""

    name: str
    dtype: str
    colour: Literal["RGB", "GREY"]
    layout: Literal["NCHW", "NHWC"]
    height: int | None
    width: int | None
    batch: int | None
    single: bool = False

    @property
    def channels(self) -> int:
        """3 of RGB, 1 of GREY."""
        return 3 if self.colour == "RGB" else 1

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width where both are fixed."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of a tensor of so many images."""
        sides = (self.channels, height, width) if self.layout == "NCHW" else (height, width, self.channels)
        return sides if self.single else (batch, *sides)


def image_input(tensor: TensorSpec) -> ImageInput:
    """Return what a tensor says; raises `CommandError` where it can be no image."""
    from segserve_builder.families.signature import IMAGE_DTYPES, model_text

    axes = tensor.shape[1:] if len(tensor.shape) == 4 else tensor.shape
    if tensor.dtype not in IMAGE_DTYPES or len(axes) != 3:
        raise CommandError(
            f"input {model_text(tensor)} is no image; allowed are {', '.join(IMAGE_DTYPES)} with 4 axes: "
            "[batch, 3, height, width], [batch, height, width, 3], or 1 channel instead of 3"
        )
    single = len(tensor.shape) == 3
    batch = 1 if single else tensor.shape[0]
    if axes[0] in COLOURS:
        return ImageInput(tensor.name, tensor.dtype, COLOURS[axes[0]], "NCHW", axes[1], axes[2], batch, single)
    if axes[2] in COLOURS:
        return ImageInput(tensor.name, tensor.dtype, COLOURS[axes[2]], "NHWC", axes[0], axes[1], batch, single)
    raise CommandError(
        f"input {model_text(tensor)}: the number of channels must be in the file, 3 (RGB) or 1 (GREY), as its second or "
        "last axis; export it with a fixed number of channels"
    )
