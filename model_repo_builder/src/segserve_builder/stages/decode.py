"""The stage that turns an image file into pixels."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Encoded, Image, ResizeTransform, ValueType


class Decode(Stage):
    """Decode JPEG, PNG, WebP or TIFF; images sent as PIXELS skip it.

    Runs with its defaults if a pipeline does not list it. Alpha is dropped; `segserve_builder.imaging.decoding`
    documents the conversion of colour and 16 bits.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.ENCODED})
    gives: ClassVar[ValueType | None] = ValueType.IMAGE

    orientation: Literal["apply", "ignore"] = Field(
        "apply", description="Whether the EXIF orientation is applied; ignore it if training did."
    )

    def __call__(self, value: Encoded, request: RequestOptions) -> Image:
        """Return the pixels, of the colour and dtype that `value` names; raises `BadImageError`."""
        from segserve_builder.imaging.decoding import decode_image

        pixels = decode_image(
            value.data,
            colour=value.colour,
            dtype=value.dtype,
            max_pixels=value.max_pixels,
            orientation=self.orientation,
        )
        return Image(pixels, ResizeTransform.of(*pixels.shape[:2]))
