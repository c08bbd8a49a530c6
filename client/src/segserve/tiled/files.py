"""Image files as pixel sources: TIFF by windows, PNG, JPEG and WebP decoded as a whole."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segserve.errors import MissingExtraError
from segserve.tiled.errors import ImageTooLargeError
from segserve.tiled.sources import ArraySource
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image

    from segserve.tiled.sources import PixelSource

# A PNG or JPEG has to be decoded from its first row to its last: 270 MB for RGB. It is Pillow's own limit.
MAX_DECODED_PIXELS: Final = 89_478_485
# One strip or tile of a TIFF is decoded as a whole.
MAX_CHUNK_BYTES: Final = 268_435_456
STRIP_CACHE_BYTES: Final = 201_326_592


class FileSource(ArraySource):
    """An array out of a file; its digest is the file's, as it is, which is faster than decoding it."""

    def __init__(self, array: Any, path: Path, *, store: Any = None) -> None:
        # What decodes a TIFF is not made for threads.
        super().__init__(array, is_shared=store is None)
        self._path = path
        self._store = store

    def digest(self) -> str:
        """Return the digest of the file."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def close(self) -> None:
        """Close the file."""
        if self._store is not None:
            self._store.close()


class StripArray:
    """The strips of a TIFF, decoded one by one; those that the next windows will need again are kept."""

    def __init__(self, array: Any) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._array = array
        self._rows = int(array.chunks[0])
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        rows, columns = key
        strips = range(rows.start // self._rows, -(-rows.stop // self._rows))
        parts = []
        for number in strips:
            strip = self._strip(number)
            first = number * self._rows
            parts.append(strip[max(rows.start - first, 0) : rows.stop - first, columns])
        return np.concatenate(parts)

    def _strip(self, number: int) -> NDArray[Any]:
        if number not in self._kept:
            self._kept[number] = np.asarray(self._array[number * self._rows : (number + 1) * self._rows])
        self._kept.move_to_end(number)
        while len(self._kept) > 1 and sum(strip.nbytes for strip in self._kept.values()) > STRIP_CACHE_BYTES:
            self._kept.popitem(last=False)
        return self._kept[number]


def open_tiff(path: Path) -> PixelSource:
    """Open the first image of a TIFF or BigTIFF at its full resolution.

    Raises `BadRequestError` for one that cannot be read by windows, `MissingExtraError` without the extra `batch`.
    """
    try:
        import tifffile
        import zarr
    except ImportError as error:
        raise MissingExtraError(
            f"a TIFF that is read by windows needs packages that are not installed ({error}): "
            "pip install 'segserve[batch]'"
        ) from error
    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            if series.axes not in ("YX", "YXS", "YXC"):
                raise BadRequestError(
                    f"{str(path)!r} has the axes {series.axes}, shaped {series.shape}; allowed are YX and YXS, "
                    "a page of grey or interleaved colours"
                )
            if series.dataoffset is not None and series.dtype is not None and series.dtype.isnative:
                mapped = np.memmap(path, series.dtype, "r", series.dataoffset, series.shape)
                return FileSource(mapped, path)
        store = tifffile.imread(path, aszarr=True, series=0, level=0)
        try:
            array: Any = zarr.open(store, mode="r")
            _try_a_pixel(array, path)
        except BaseException:
            store.close()
            raise
    except (tifffile.TiffFileError, IndexError, KeyError, ValueError) as error:
        if "imagecodecs" in str(error):
            raise MissingExtraError(f"{str(path)!r} cannot be read: {error}: pip install 'segserve[batch]'") from error
        raise BadRequestError(f"{str(path)!r} is not a TIFF that can be read: {error}") from error
    is_in_strips = array.chunks[1] >= array.shape[1]
    return FileSource(StripArray(array) if is_in_strips else array, path, store=store)


def _try_a_pixel(array: Any, path: Path) -> None:
    """Raise where a strip or tile is too large to decode, or its codec is not there."""
    size = int(np.prod(array.chunks)) * array.dtype.itemsize
    if size > MAX_CHUNK_BYTES:
        raise ImageTooLargeError(
            f"{str(path)!r} has its pixels in compressed strips of {array.chunks[0]} rows, {size} bytes each; up to "
            f"{MAX_CHUNK_BYTES} can be read. Write it with tiles, or with strips of fewer rows"
        )
    array[:1, :1]


def open_picture(path: Path) -> PixelSource:
    """Open a PNG, JPEG or WebP, which is decoded as a whole when first read; EXIF turns it.

    Raises `ImageTooLargeError` beyond `MAX_DECODED_PIXELS`, `BadRequestError` for other files.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_DECODED_PIXELS:
                raise _too_large(path, f"{image.width} x {image.height} pixels")
            upright = ImageOps.exif_transpose(image)
            pixels = _pixels(upright)
    except Image.DecompressionBombError as error:
        raise _too_large(path, "more than twice as many pixels") from error
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise BadRequestError(
            f"{str(path)!r} is not an image that can be read by tiles: {error}; allowed are TIFF, PNG, JPEG, WebP, "
            ".npy and zarr"
        ) from error
    return FileSource(pixels, path)


def _pixels(image: Image.Image) -> NDArray[Any]:
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)
    keeps = {"L": "L", "1": "L", "LA": "L", "RGBA": "RGBA"}
    return np.asarray(image.convert(keeps.get(image.mode, "RGB")))


def _too_large(path: Path, size: str) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"{str(path)!r} has {size}; a PNG, JPEG or WebP is decoded as a whole, which is done up to "
        f"{MAX_DECODED_PIXELS} pixels. Larger images are read from TIFF, zarr or .npy"
    )
