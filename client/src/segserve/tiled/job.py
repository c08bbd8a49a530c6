"""The work for one tile, in any process: read its pixels, send them to the model, keep the answer."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segserve.errors import RevisionChangedError
from segserve.results.images import ImageLike
from segserve.results.values import ModelInfo
from segserve.tiled.options import TileEncoding
from segserve.tiled.tile_results import map_of, record_of
from segserve_common.errors import BadRequestError, ProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray
from segserve.results.result import Result
from segserve.tiled.grid import Grid, Tile
from segserve.tiled.maps import MapFile, PixelMap
from segserve.tiled.sources import PixelSource
from segserve.tiled.tile_results import Record


class Segmenter(Protocol):
    """A client for threads, as tiles need it."""

    def segment(
        self,
        image: ImageLike,
        *,
        model: str,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """Segment one image."""

    def model_info(self, model: str) -> ModelInfo:
        """Return the info of the model that is served under a name."""


class AsyncSegmenter(Protocol):
    """A client for the tasks of an event loop, as tiles need it."""

    async def segment(
        self,
        image: ImageLike,
        *,
        model: str,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """Segment one image."""

    async def model_info(self, model: str) -> ModelInfo:
        """Return the info of the model that is served under a name."""


@dataclass(frozen=True, slots=True)
class TileRequest:
    """The options of every tile's request; None leaves an option to the model's resource."""

    model: str
    score_threshold: float | None = None
    max_detections: int | None = None
    timeout_s: float | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Client.segment` except the image."""
        return {
            "model": self.model,
            "score_threshold": self.score_threshold,
            "max_detections": self.max_detections,
            "timeout_s": self.timeout_s,
        }


@dataclass(frozen=True, slots=True)
class TileJob:
    """The picklable description of a run's tiles. `revision` is the one that must answer; None accepts any.

    `nodata` is the value of maps where the image has no data, None if it has them everywhere.
    """

    grid: Grid
    request: TileRequest
    send: TileEncoding
    revision: str | None
    map_file: MapFile | None
    nodata: int | None = None

    def image(self, source: PixelSource, tile: Tile) -> NDArray[Any] | bytes:
        """Return a tile's pixels, (H, W) or (H, W, C), or the bytes of a PNG of them."""
        pixels = source.read(tile.window)
        return pixels if self.send == "pixels" else _png(pixels)

    def keep(self, result: Result, source: PixelSource, tile: Tile, pixel_map: PixelMap | None) -> Record:
        """Write the map of the tile's cell and return its record.

        Raises `RevisionChangedError` if another revision answered, and `ProtocolError` for an answer of another size.
        """
        if self.revision is not None and result.revision != self.revision:
            raise RevisionChangedError(
                f"revision {result.revision!r} answered tile {tile.index}; the run started with {self.revision!r}. "
                "Wait until the rollout has ended and start over (start_over=True, --start-over), or set "
                "on_revision_change (--on-revision-change) to 'restart' or 'allow'",
                model=result.model,
                revision=result.revision,
            )
        if result.size != (tile.window.height, tile.window.width):
            raise ProtocolError(f"tile {tile.index} of {tile.window} was answered for an image of {result.size}")
        valid = None if source.mask is None else source.mask.read(tile.window)
        values = map_of(result)
        if values is not None and valid is not None and self.nodata is not None:
            values = np.where(valid, values, np.uint16(self.nodata))
        if values is not None and pixel_map is not None:
            pixel_map.write(tile.cell, values[tile.cell.slices((tile.window.top, tile.window.left))])
        return record_of(result, tile, self.grid, valid)

    def answer(self, client: Segmenter, source: PixelSource, pixel_map: PixelMap | None, tile: Tile) -> Record:
        """Read the tile, segment it and keep the answer."""
        result = client.segment(self.image(source, tile), **self.request.arguments())
        return self.keep(result, source, tile, pixel_map)


def _png(pixels: NDArray[Any]) -> bytes:
    from PIL import Image

    if pixels.dtype.itemsize > 1 and pixels.ndim == 3:
        raise BadRequestError("send='png' supports 8 bits per channel and 16-bit grey; this image has 16-bit colour")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
