"""Pixel sources of large images: arrays, memory maps, zarr and TIFF by windows; PNG, JPEG and WebP decoded whole."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections import OrderedDict
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from segserve.errors import ImageTooLargeError, MissingExtraError, package_of_extra
from segserve.results.images import MAX_DECODED_PIXELS as MAX_DECODED_PIXELS
from segserve.results.images import file_pixels, path_of
from segserve.tiled.grid import Window
from segserve_common.errors import BadRequestError
from segserve_common.files import file_sha256
from segserve_common.image_file import (
    BLACK_IS_ZERO,
    FROM_BELOW,
    FROM_RIGHT,
    PALETTE,
    RGB,
    SWAPPED,
    WHITE_IS_ZERO,
    YCBCR,
    ImageFileError,
    ImageHeader,
    describe_file,
    turn,
)

CHANNELS: Final = (1, 3, 4)
DIGEST_ROWS: Final = 256
# One strip or tile of a TIFF is decoded as a whole.
MAX_CHUNK_BYTES: Final = 268_435_456
STRIP_CACHE_BYTES: Final = 201_326_592
_OLD_JPEG: Final = 6
_CONVERTED: Final = (7, 33003, 33005, 34712)
"""Compressions (JPEG, JPEG 2000) whose decoders turn YCbCr into RGB."""
_ASSOCIATED: Final = 1
BY_WINDOWS: Final = "reading a TIFF by windows"
_ALLOWED: Final = (
    "a path (TIFF, PNG, JPEG, WebP, .npy or a zarr folder), a uint8 or uint16 numpy array or memory map, or a zarr "
    "array, shaped (H, W) or (H, W, 3 or 4)"
)


class PixelSource(Protocol):
    """An image of `height` x `width` pixels with 1, 3 or 4 `channels`, uint8 or uint16. Thread-safe.

    `mask` says where it has data, None if it has them everywhere.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    mask: DataMask | None

    def read(self, window: Window) -> NDArray[Any]:
        """Return a copy of the window's pixels, (h, w) for one channel, else (h, w, channels)."""

    def digest(self) -> str:
        """Return a digest of all pixels."""

    def close(self) -> None:
        """Close the files that were opened for the source."""


@runtime_checkable
class Sliceable(Protocol):
    """The common interface of zarr arrays, h5py datasets and others."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, channels)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of its elements."""

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class SourcePath:
    """The path of an image, which workers on other machines can open."""

    path: str

    def open(self) -> PixelSource:
        """Open the image; raises as `open_source` does."""
        return open_path(Path(self.path))


class DataMask:
    """Where a GeoTIFF has data: not 0 in its mask page and alpha band, not `nodata` in all other bands.

    Raises `MissingExtraError` without the extra `batch`, and `BadRequestError` for pages that cannot be read.
    """

    def __init__(self, path: Path, file: ImageHeader) -> None:
        self._file = file
        self._lock = threading.Lock()  # TIFF decoding is not thread-safe
        pages = {file.mask_page} if file.nodata is None and file.alpha is None else {0, file.mask_page}
        with ExitStack() as opened:
            self._pages = {page: _open_page(path, file, opened, key=page) for page in pages if page is not None}
            self._close = opened.pop_all()

    def read(self, window: Window) -> NDArray[np.bool_]:
        """Return whether each pixel of a window has data, bool (h, w)."""
        file, place = self._file, _as_stored(window.slices(), self._file)
        with self._lock:
            planes = (slice(None), *place) if file.planar == 2 else place
            pages = {page: np.asarray(array[planes if page == 0 else place]) for page, array in self._pages.items()}
        valid = np.ones([part.stop - part.start for part in place], np.bool_)
        if file.mask_page is not None:
            valid &= pages[file.mask_page] != 0
        if 0 in pages:
            bands = pages[0] if file.planar == 2 else np.moveaxis(pages[0].reshape(*valid.shape, -1), -1, 0)
            values = list(bands)
            if file.alpha is not None:
                valid &= values.pop(file.alpha) != 0
            if file.nodata is not None:
                valid &= np.any([band != file.nodata for band in values], axis=0)
        return turn(valid, file.orientation)

    def close(self) -> None:
        """Close the file."""
        self._close.close()


class ArraySource:
    """An array whose windows are read by slicing; not `is_shared` allows one read at a time."""

    mask: DataMask | None = None

    def __init__(self, array: Sliceable, *, is_shared: bool = True) -> None:
        self.height, self.width, self.channels = _layout(array.shape, array.dtype)
        self.dtype = np.dtype(array.dtype)
        self._array = array
        self._lock = None if is_shared else threading.Lock()

    def read(self, window: Window) -> NDArray[Any]:
        """Return a copy of the window's pixels."""
        if self._lock is None:
            pixels = self._sliced(window)
        else:
            with self._lock:
                pixels = self._sliced(window)
        return pixels[:, :, 0] if pixels.ndim == 3 and self.channels == 1 else pixels

    def digest(self) -> str:
        """Return the digest of all pixels."""
        found = hashlib.sha256()
        for top in range(0, self.height, DIGEST_ROWS):
            window = Window(top, 0, min(top + DIGEST_ROWS, self.height), self.width)
            found.update(np.ascontiguousarray(self.read(window)).data)
        return found.hexdigest()

    def close(self) -> None:
        """Do nothing: the array belongs to the caller."""

    def _sliced(self, window: Window) -> NDArray[Any]:
        pixels = np.array(self._array[window.slices()])
        _forget_pages(self._array)
        return pixels


class ImageFileSource(ArraySource):
    """An array from a file; its digest is the file's, which is faster than decoding it."""

    def __init__(self, array: Any, path: Path, file: ImageHeader, *, store: ExitStack | None = None) -> None:
        # TIFF decoding is not thread-safe.
        super().__init__(array, is_shared=store is None)
        self._path = path
        with store or ExitStack() as opened:
            self.mask = opened.enter_context(closing(DataMask(path, file))) if file.gaps else None
            self._close = opened.pop_all()

    def digest(self) -> str:
        """Return the digest of the file."""
        return file_sha256(self._path)

    def close(self) -> None:
        """Close the file."""
        self._close.close()


class StripArray:
    """The strips of a TIFF, decoded one by one; strips that the next windows need are cached."""

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


class TiffPixels:
    """The pixels of a TIFF by windows as its server decodes them: upright, of one or three channels, 0 is black."""

    def __init__(self, array: Any, file: ImageHeader, palette: NDArray[np.uint16] | None) -> None:
        self._array, self._file = array, file
        self._palette = None if palette is None else np.ascontiguousarray((palette >> 8).T.astype(np.uint8))
        is_grey = palette is None and file.channels == 1
        self.shape = file.size if is_grey else (*file.size, 3)
        self.dtype = array.dtype

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        orientation = self._file.orientation
        pixels = np.array(self._array[_as_stored(key, self._file)])
        _forget_pages(self._array)
        if self._palette is not None:
            pixels = self._palette[pixels]
        if self._file.photometric == WHITE_IS_ZERO:
            pixels = ~pixels
        return turn(pixels[..., :3] if pixels.ndim == 3 else pixels, orientation)


def _as_stored(key: tuple[slice, slice], file: ImageHeader) -> tuple[slice, slice]:
    """Return the rows and columns of the stored image that a window of the upright one shows."""
    (top, bottom), (left, right) = ((part.start, part.stop) for part in key)
    height, width = file.size
    if file.orientation in FROM_BELOW:
        top, bottom = height - bottom, height - top
    if file.orientation in FROM_RIGHT:
        left, right = width - right, width - left
    rows, columns = slice(top, bottom), slice(left, right)
    return (columns, rows) if file.orientation >= SWAPPED else (rows, columns)


def _forget_pages(array: object) -> None:
    """Release a memory map's pages, which would otherwise count as this process's memory."""
    mapped = getattr(array, "_mmap", None)
    # Pages of a copy-on-write map may hold changes that exist nowhere else.
    if isinstance(mapped, mmap.mmap) and getattr(array, "mode", "c") in {"r", "r+", "w+"}:
        mapped.madvise(mmap.MADV_DONTNEED)


def open_source(image: object) -> PixelSource:
    """Open a large image.

    Raises `BadRequestError` for an unsupported object, `ImageTooLargeError` for a PNG, JPEG or WebP that is too large
    to decode, `MissingExtraError` if the extra `batch` is needed, and `OSError` for a file that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return open_path(path_of(image))
    if isinstance(image, Sliceable):
        return ArraySource(image)
    raise BadRequestError(f"a large image must be {_ALLOWED}; got {type(image).__name__}")


def open_path(path: Path) -> PixelSource:
    """Open a file or a zarr folder; raises as `open_source` does."""
    if path.is_dir():
        return ArraySource(_open_zarr(path))
    if path.suffix.lower() == ".npy":
        try:
            return ArraySource(np.load(path, mmap_mode="r"))
        except ValueError as error:
            raise BadRequestError(f"{str(path)!r} is not a .npy file: {error}") from error
    try:
        file = describe_file(path)
        if file.format == "TIFF" and (file.is_deep() or _has_windows(file)):
            return _open_tiff(path, file)
        return _open_whole(path, file)
    except (ImageFileError, BadRequestError) as error:
        if isinstance(error, ImageTooLargeError | MissingExtraError) or repr(str(path)) in str(error):
            raise
        raise BadRequestError(
            f"{str(path)!r} cannot be read as a large image: {error}; allowed: TIFF, PNG, JPEG, WebP, .npy and zarr"
        ) from error


def _has_windows(file: ImageHeader) -> bool:
    """Return whether the samples of a TIFF of at most 8 bits are what a model gets, except for what `TiffPixels`
    changes.

    Others (bits, planes, CMYK, alpha that the colours are multiplied with) are decoded as a whole, as on the server.
    """
    if file.bits != 8 or file.planar != 1 or file.compression == _OLD_JPEG or _ASSOCIATED in file.extra_samples:
        return False
    if file.photometric == YCBCR:
        return file.compression in _CONVERTED
    return file.photometric == RGB or (
        file.channels == 1 and file.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE)
    )


def _open_tiff(path: Path, file: ImageHeader) -> PixelSource:
    """Open the first image of a TIFF or BigTIFF at full resolution.

    Raises `BadRequestError` if it cannot be read by windows, and `MissingExtraError` without the extra `batch`.
    """
    tifffile = package_of_extra("tifffile", "batch", BY_WINDOWS)
    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            if series.axes not in ("YX", "YXS", "YXC"):
                raise BadRequestError(
                    f"{str(path)!r} has the axes {series.axes}, shaped {series.shape}; allowed: YX and YXS, "
                    "a page of grey or interleaved colours"
                )
            if series.keyframe.index != 0:
                raise BadRequestError(
                    f"{str(path)!r} has its picture on page {series.keyframe.index + 1}; expected the first"
                )
            palette = tiff.pages.first.colormap if file.photometric == PALETTE else None
            if series.dataoffset is not None and series.dtype is not None and series.dtype.isnative:
                mapped = np.memmap(path, series.dtype, "r", series.dataoffset, series.shape)
                return ImageFileSource(TiffPixels(mapped, file, palette), path, file)
    except (tifffile.TiffFileError, IndexError, KeyError, ValueError) as error:
        raise BadRequestError(f"{str(path)!r} is not a TIFF that can be read: {error}") from error
    with ExitStack() as opened:
        array = _open_page(path, file, opened, series=0, level=0)
        return ImageFileSource(TiffPixels(array, file, palette), path, file, store=opened.pop_all())


def _open_page(path: Path, file: ImageHeader, opened: ExitStack, **place: Any) -> Any:
    """Return an array of a TIFF's pixels as stored, which is read by windows until `opened` closes.

    Raises as `_open_tiff` does.
    """
    tifffile, zarr = (package_of_extra(name, "batch", BY_WINDOWS) for name in ("tifffile", "zarr"))
    try:
        store = opened.enter_context(closing(tifffile.imread(path, aszarr=True, **place)))
        array: Any = zarr.open(store, mode="r")
        size = int(np.prod(array.chunks)) * array.dtype.itemsize
        if size > MAX_CHUNK_BYTES:
            raise ImageTooLargeError(
                f"{str(path)!r} stores pixels in compressed strips of {array.chunks[0]} rows, {size} bytes each; up to "
                f"{MAX_CHUNK_BYTES} bytes are supported. Write it with tiles, or with strips of fewer rows"
            )
        array[:1, :1]
    except (tifffile.TiffFileError, IndexError, KeyError, ValueError) as error:
        if "imagecodecs" in str(error):
            raise MissingExtraError(f"{str(path)!r} cannot be read: {error}: pip install 'segserve[batch]'") from error
        raise BadRequestError(f"{str(path)!r} is not a TIFF that can be read: {error}") from error
    is_planar = array.ndim == 3 and file.planar == 2
    return array if is_planar or array.chunks[1] < array.shape[1] else StripArray(array)


def _open_whole(path: Path, file: ImageHeader) -> PixelSource:
    """Open an image that is decoded as a whole, and turned as its EXIF data says.

    Raises `ImageTooLargeError` above `MAX_DECODED_PIXELS`, and `BadRequestError` for damaged files.
    """
    if file.height * file.width > MAX_DECODED_PIXELS:
        limit = f"decoded as a whole and limited to {MAX_DECODED_PIXELS} pixels"
        what, advice = "PNG, JPEG and WebP are", "TIFF, zarr or .npy"
        if file.format == "TIFF":
            what, advice = f"a TIFF of {file.samples} is", "a TIFF of 8 bits, grey or interleaved RGB,"
        raise ImageTooLargeError(
            f"{str(path)!r} has {file.width} x {file.height} pixels; {what} {limit}. Use {advice} for larger images"
        )
    if file.format == "PNG" and file.bits == 16 and file.channels > 1:
        pixels = turn(_deep_colours(path), file.orientation)
    else:
        pixels = file_pixels(path.read_bytes())
    # Alpha is dropped, as on the server.
    return ImageFileSource(pixels[:, :, : pixels.shape[2] - 1] if pixels.shape[2] in (2, 4) else pixels, path, file)


def _deep_colours(path: Path) -> NDArray[Any]:
    """Return the pixels of a PNG of 16-bit colours, of which Pillow has only the high byte."""
    imagecodecs = package_of_extra("imagecodecs", "batch", f"{str(path)!r} of 16-bit colours")
    try:
        pixels: NDArray[Any] = imagecodecs.png_decode(path.read_bytes())
    except (RuntimeError, ValueError) as error:
        raise BadRequestError(f"{str(path)!r} is damaged or cut short: {error}") from error
    return pixels


def by_path(image: object) -> SourcePath:
    """Return the path of an image for workers.

    Raises `BadRequestError` for an array in memory.
    """
    if isinstance(image, str | os.PathLike):
        return SourcePath(str(Path(image).resolve()))
    root = getattr(getattr(image, "store", None), "root", None)
    inner = getattr(image, "path", None)
    if root is not None and isinstance(inner, str):
        return SourcePath(str(Path(root).resolve() / inner))
    raise BadRequestError(
        f"with a scheduler, workers open the image themselves: pass its path, or a zarr array in a folder that they "
        f"can reach; got {type(image).__name__}"
    )


def _open_zarr(path: Path) -> Any:
    zarr = package_of_extra("zarr", "batch", f"the zarr folder {str(path)!r}")
    try:
        found: Any = zarr.open(str(path), mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise BadRequestError(f"the folder {str(path)!r} is not a zarr array: {error}") from error
    if not isinstance(found, zarr.Array):
        arrays = sorted(found.keys())
        advice = f"{path / arrays[0]} (of an OME-Zarr the largest scale)" if arrays else "an array's"
        raise BadRequestError(
            f"{str(path)!r} is a zarr group of {', '.join(arrays) or 'nothing'}; pass the path {advice}"
        )
    return found


def _layout(shape: tuple[int, ...], dtype: object) -> tuple[int, int, int]:
    """Return height, width and channels; raises `BadRequestError` for other shapes and dtypes."""
    if np.dtype(dtype) not in (np.dtype(np.uint8), np.dtype(np.uint16)):  # type: ignore[call-overload]
        raise BadRequestError(f"a large image must be {_ALLOWED}; got {dtype}")
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in CHANNELS or 0 in shape:
        advice = ": channels come first, np.moveaxis(array, 0, -1)" if len(shape) == 3 and shape[0] in CHANNELS else ""
        advice = advice or (": pass one plane of the stack, array[t, z]" if len(shape) > 3 else "")
        raise BadRequestError(f"a large image must be {_ALLOWED}; got the shape {tuple(shape)}{advice}")
    return int(shape[0]), int(shape[1]), int(channels)
