"""Maps of labels or ids the size of the image, written cell by cell: a zarr array or a .npy file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from segserve.errors import CheckpointError, package_of_extra
from segserve.tiled.grid import Window

ZARR, NPY = ".zarr", ".npy"


class PixelMap(Protocol):
    """A map that many threads (with zarr, many processes) write, each cell once."""

    def write(self, cell: Window, values: NDArray[Any]) -> None:
        """Set the pixels of a cell."""

    def read(self, cell: Window) -> NDArray[Any]:
        """Return the pixels of a cell."""


@dataclass(frozen=True, slots=True)
class MapFile:
    """The file and format of a map; `chunk` is the side of its chunks in zarr."""

    path: str
    height: int
    width: int
    dtype: str
    chunk: int

    def create(self, attributes: Mapping[str, Any]) -> PixelMap:
        """Create the map, filled with 0, replacing an existing one; `attributes` are stored in zarr."""
        if self.path.endswith(ZARR):
            shape, chunks = (self.height, self.width), (self.chunk, self.chunk)
            _zarr().create_array(
                self.path, shape=shape, chunks=chunks, dtype=self.dtype, overwrite=True, attributes=dict(attributes)
            )
            return self.open()
        array = np.lib.format.open_memmap(self.path, "w+", np.dtype(self.dtype), (self.height, self.width))
        del array
        return self.open()

    def open(self) -> PixelMap:
        """Open the map; raises `CheckpointError` if it is missing or of another shape or dtype."""
        try:
            if self.path.endswith(ZARR):
                array = _zarr().open_array(self.path, mode="r+")
                shape, dtype = array.shape, array.dtype
                found: PixelMap = _ZarrMap(array)
            else:
                mapped = np.load(self.path, mmap_mode="r")
                shape, dtype = mapped.shape, mapped.dtype
                found = _NpyMap(self.path, mapped.offset, self.width, mapped.dtype)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the map {self.path!r} of the unfinished run cannot be opened: {error}. Start over"
            ) from error
        if shape != (self.height, self.width) or dtype != np.dtype(self.dtype):
            raise CheckpointError(
                f"the map {self.path!r} is {dtype} {shape}, expected {self.dtype} "
                f"{(self.height, self.width)}. Start over"
            )
        return found

    def sweep(self) -> None:
        """Remove what processes left that were killed within a write; to be called when no process writes any more."""
        if self.path.endswith(ZARR):
            for partial in Path(self.path).rglob("*.partial"):
                partial.unlink(missing_ok=True)


def _zarr() -> Any:
    return package_of_extra("zarr", "batch", "a zarr map", ", or use labels='npy'")


@dataclass(frozen=True, slots=True)
class _ZarrMap:
    # A chunk belongs to one cell, so no two writers touch the same one.
    array: Any

    def write(self, cell: Window, values: NDArray[Any]) -> None:
        self.array[cell.slices()] = values

    def read(self, cell: Window) -> NDArray[Any]:
        return np.asarray(self.array[cell.slices()])


@dataclass(frozen=True, slots=True)
class _NpyMap:
    # Written with pwrite: the pages of a memory map would count as this process's memory.
    path: str
    offset: int
    width: int
    dtype: np.dtype[Any]

    def write(self, cell: Window, values: NDArray[Any]) -> None:
        rows = np.ascontiguousarray(values, self.dtype)
        handle = os.open(self.path, os.O_WRONLY)
        try:
            for number, row in enumerate(rows):
                os.pwrite(handle, row.tobytes(), self._at(cell.top + number, cell.left))
        finally:
            os.close(handle)

    def read(self, cell: Window) -> NDArray[Any]:
        size = cell.width * self.dtype.itemsize
        handle = os.open(self.path, os.O_RDONLY)
        try:
            rows = [os.pread(handle, size, self._at(row, cell.left)) for row in range(cell.top, cell.bottom)]
        finally:
            os.close(handle)
        return np.frombuffer(b"".join(rows), self.dtype).reshape(cell.height, cell.width)

    def _at(self, row: int, column: int) -> int:
        return self.offset + (row * self.width + column) * self.dtype.itemsize


def labels_dtype(largest: int) -> Literal["uint8", "uint16"]:
    """Return the smallest dtype that holds the class ids up to `largest`."""
    return "uint8" if largest < 256 else "uint16"


def nodata_of(largest: int) -> int:
    """Return the value of pixels without data in a map of class ids up to `largest`: 255, or else 65535."""
    return int(np.iinfo(labels_dtype(largest + 1)).max)
