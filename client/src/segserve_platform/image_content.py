"""The content of an image file as it is sent: bytes that servers decode, or pixels that Pillow decodes here."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from segserve_common.errors import BadRequestError
from segserve_common.image_file import (
    PNG_SIGNATURE,
    TIFF_SIGNATURES,
    ImageFileError,
    describe,
    describe_file,
    frame_count,
)

if TYPE_CHECKING:
    from PIL import Image

    from segserve.results.values import ModelInfo

OF_PILLOW: Final = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpf", ".jpx"}
    | {".heic", ".heif", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".qoi", ".tga"}
)
"""Suffixes of further images in folders, which Pillow decodes here; files that are named may have any suffix."""
SERVER_DECODES: Final = (b"\xff\xd8\xff", PNG_SIGNATURE, b"RIFF", *TIFF_SIGNATURES)
RUN_PROGRAMS: Final = frozenset({"EPS"})
"""Formats that Pillow has Ghostscript decode; an image must not be able to start one."""
HEIF_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True, slots=True)
class ImageContent:
    """An image as it is sent: the bytes of a file that servers decode, or pixels that Pillow decodes here.

    Of `frames` (of an animation) or pages (of a TIFF) only the first is sent. `gaps` says what marks pixels of a
    GeoTIFF as without data.
    """

    image: bytes | Image.Image
    frames: int = 1
    gaps: str = ""

    def notes(self, image: object, path: Path | None, info: Callable[[], ModelInfo], *, in_tiles: bool) -> list[str]:
        """Return what of an image is not in the answer of the model with this info, or spoils it."""
        notes = []
        if self.frames > 1:
            notes.append(f"only the first of the {self.frames} frames or pages of {image} was segmented")
        if self.gaps and not in_tiles:
            notes.append(
                f"pixels of {image} without data ({self.gaps}) are segmented and counted as others are; "
                "`segserve batch` leaves them out"
            )
        content = path or self.image
        return notes + (dark_notes(content, image, info) if isinstance(content, Path | bytes) else [])


def dark_notes(image: Path | bytes, name: object, info: Callable[[], ModelInfo]) -> list[str]:
    """Return a note if a file of 16 bits uses a small part of them, and the model has no window of values."""
    with suppress(ImageFileError, OSError):  # of an array
        if (describe(image) if isinstance(image, bytes) else describe_file(image)).bits != 16:
            return []
    from segserve.tiled.segmenting import little_used_range

    largest = little_used_range(image)
    if largest is None or ((pixels := info().pixels) is not None and pixels.window is not None):
        return []
    return [
        f"the values of {name} go up to {largest} of 65535, which is nearly black; set `window: [0, {largest}]` of the "
        "model's stage decode, or scale them first (12 bits: times 16)"
    ]


def image_content(data: bytes) -> ImageContent:
    """Return the content of a file; formats unknown to Pillow are left to the server, which says what it takes.

    Raises `BadRequestError` for a damaged file of a format that Pillow decodes here.
    """
    from PIL import Image

    try:
        return ImageContent(data, frame_count(data), describe(data).gaps)
    except ImageFileError:
        if data.startswith(SERVER_DECODES):
            return ImageContent(data)
    is_heic = data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS
    if is_heic:
        try:
            import_module("pillow_heif").register_heif_opener()
        except ImportError as error:
            raise BadRequestError(
                "it is a HEIC file, which needs a package that is not installed: pip install pillow-heif, or convert "
                "it to JPEG"
            ) from error
    try:
        opened = Image.open(io.BytesIO(data))
        if opened.format in RUN_PROGRAMS:
            return ImageContent(data)
        frames = getattr(opened, "n_frames", 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if is_heic:
            raise BadRequestError(f"the HEIC image is damaged or cut short: {error}") from error
        return ImageContent(data)
    try:
        opened.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise BadRequestError(f"the {opened.format} image is damaged or cut short: {error}") from error
    return ImageContent(opened, frames)
