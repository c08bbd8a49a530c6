"""The stage that turns an image file into pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Encoded, Image, ResizeTransform, ValueType


def decode_of(stages: Iterable[Stage]) -> Decode:
    """Return the stage of a list that decodes images, or the one that runs if none is listed."""
    return next((stage for stage in stages if isinstance(stage, Decode)), Decode())


class Decode(Stage):
    """Decode JPEG, PNG, WebP or TIFF; of images sent as PIXELS only `window` changes those of 16 bits.

    Runs with its defaults if a pipeline does not list it. Alpha is dropped; `segserve_builder.imaging.decoding`
    documents the conversion of colour and 16 bits.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.ENCODED})
    gives: ClassVar[ValueType | None] = ValueType.IMAGE

    orientation: Literal["apply", "ignore"] = Field(
        "apply", description="Whether the EXIF orientation is applied; ignore it if training did."
    )
    window: tuple[int, int] | None = Field(
        None,
        description="Lowest and highest value of images of 16 bits, which become black and white, such as [0, 4095] "
        "for 12 bits. Default: 0 and 65535. Images of 8 bits stay as they are.",
    )

    @field_validator("window")
    @classmethod
    def _rises(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 0 <= value[0] < value[1] <= 65535:
            raise ValueError(f"a window is two values from 0 to 65535, the lower one first, got {list(value)}")
        return value

    def __call__(self, value: Encoded, request: RequestOptions) -> Image:
        """Return the pixels, of the colour and dtype that `value` names; raises `BadImageError`."""
        from segserve_builder.imaging.decoding import decode_image

        pixels = decode_image(
            value.data,
            colour=value.colour,
            dtype=value.dtype,
            max_pixels=value.max_pixels,
            orientation=self.orientation,
            window=self.window,
        )
        return Image(pixels, ResizeTransform.of(*pixels.shape[:2]))
