"""Large images that are read window by window: arrays, memory maps and zarr; files are in `files`."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, runtime_checkable

import numpy as np

from segserve.errors import MissingExtraError
from segserve.tiled.grid import Window
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Identity: TypeAlias = dict[str, Any]

CHANNELS: Final = (1, 3, 4)
DIGEST_ROWS: Final = 256
_ALLOWED: Final = (
    "a path (TIFF, PNG, JPEG, WebP, .npy or a zarr folder), a uint8 or uint16 numpy array or memory map, or a zarr "
    "array, shaped (H, W) or (H, W, 3 or 4)"
)


class PixelSource(Protocol):
    """An image of `height` x `width` pixels with `channels` 1, 3 or 4, uint8 or uint16. Safe for threads."""

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]

    def read(self, window: Window) -> NDArray[Any]:
        """Return a copy of the window's pixels, (h, w) for one channel, else (h, w, channels)."""
        ...

    def digest(self) -> str:
        """Return what differs for other pixels; it reads all of them."""
        ...

    def close(self) -> None:
        """Close the files that were opened for it."""
        ...


@runtime_checkable
class Sliceable(Protocol):
    """What zarr arrays, h5py datasets and others have in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, channels)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""
        ...

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class SourcePath:
    """An image by its path: what workers elsewhere can open themselves."""

    path: str

    def open(self) -> PixelSource:
        """Open it; raises what `open_source` raises."""
        return open_path(Path(self.path))


class ArraySource:
    """An array whose windows are read by slicing, one at a time where `is_shared` says that it must be so."""

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
        """Leave the array as it is: it is the caller's."""

    def _sliced(self, window: Window) -> NDArray[Any]:
        pixels = np.array(self._array[window.slices()])
        _forget_pages(self._array)
        return pixels


def _forget_pages(array: object) -> None:
    """Let go of a memory map's pages, which else count as this process's memory until another needs it."""
    mapped = getattr(array, "_mmap", None)
    # Pages of a copy-on-write map may hold changes that are nowhere else.
    if isinstance(mapped, mmap.mmap) and getattr(array, "mode", "c") in {"r", "r+", "w+"}:
        mapped.madvise(mmap.MADV_DONTNEED)


def open_source(image: object) -> PixelSource:
    """Open a large image.

    Raises `BadRequestError` for what cannot be one, `ImageTooLargeError` for a PNG, JPEG or WebP that would be too
    large decoded, `MissingExtraError` where the extra `batch` is needed, and `OSError` for a file that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return open_path(Path(image))
    if isinstance(image, Sliceable):
        return ArraySource(image)
    raise BadRequestError(f"a large image is {_ALLOWED}; got {type(image).__name__}")


def open_path(path: Path) -> PixelSource:
    """Open a file or a zarr folder by its path; raises as `open_source` does."""
    from segserve.tiled.files import open_picture, open_tiff

    if path.is_dir():
        return ArraySource(_open_zarr(path))
    if path.suffix.lower() == ".npy":
        try:
            return ArraySource(np.load(path, mmap_mode="r"))
        except ValueError as error:
            raise BadRequestError(f"{str(path)!r} is not a .npy file: {error}") from error
    with path.open("rb") as file:
        start = file.read(4)
    if start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return open_tiff(path)
    return open_picture(path)


def by_path(image: object) -> SourcePath:
    """Return how workers open the image themselves.

    Raises `BadRequestError` where they cannot: for an array in memory.
    """
    if isinstance(image, str | os.PathLike):
        return SourcePath(str(Path(image).resolve()))
    root = getattr(getattr(image, "store", None), "root", None)
    inner = getattr(image, "path", None)
    if root is not None and isinstance(inner, str):
        return SourcePath(str(Path(root).resolve() / inner))
    raise BadRequestError(
        f"with a scheduler the workers open the image themselves: give its path or a zarr array of a folder that they "
        f"can reach; got {type(image).__name__}"
    )


def _open_zarr(path: Path) -> Sliceable:
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError(
            f"the zarr folder {str(path)!r} needs a package that is not installed: pip install 'segserve[batch]'"
        ) from error
    try:
        found = zarr.open(str(path), mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise BadRequestError(f"the folder {str(path)!r} is no zarr array: {error}") from error
    if not isinstance(found, zarr.Array):
        raise BadRequestError(
            f"{str(path)!r} is a zarr group of {', '.join(sorted(found.keys())) or 'nothing'}; give an array's path"
        )
    return found


def _layout(shape: tuple[int, ...], dtype: object) -> tuple[int, int, int]:
    """Return height, width and channels, or raise `BadRequestError`."""
    if np.dtype(dtype) not in (np.dtype(np.uint8), np.dtype(np.uint16)):  # type: ignore[call-overload]
        raise BadRequestError(f"a large image is {_ALLOWED}; got {dtype}")
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in CHANNELS or 0 in shape:
        raise BadRequestError(f"a large image is {_ALLOWED}; got the shape {tuple(shape)}")
    return int(shape[0]), int(shape[1]), int(channels)
