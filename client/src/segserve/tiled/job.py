"""What is done for one tile, in whichever process: read its pixels, ask the model, keep the answer."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from segserve.tiled.errors import RevisionChangedError
from segserve.tiled.tile_results import map_of, record_of
from segserve_common.errors import BadRequestError, ProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve.client import Client
    from segserve.results.result import Result
    from segserve.tiled.grid import Grid, Tile
    from segserve.tiled.maps import MapFile, PixelMap
    from segserve.tiled.sources import PixelSource
    from segserve.tiled.tile_results import Record

Send: TypeAlias = Literal["pixels", "png"]
SENDS: Final[tuple[Send, ...]] = ("pixels", "png")


@dataclass(frozen=True, slots=True)
class Asked:
    """What every tile's request says; None is as the model's file has it."""

    model: str
    score_threshold: float | None = None
    max_detections: int | None = None
    timeout_s: float | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Client.segment` beside the image."""
        return {
            "model": self.model,
            "score_threshold": self.score_threshold,
            "max_detections": self.max_detections,
            "timeout_s": self.timeout_s,
        }


@dataclass(frozen=True, slots=True)
class TileJob:
    """What any process needs to answer tiles; it can be pickled. `revision` is the one that must answer, if any."""

    grid: Grid
    asked: Asked
    send: Send
    revision: str | None
    map_file: MapFile | None

    def image(self, source: PixelSource, tile: Tile) -> NDArray[Any] | bytes:
        """Read a tile's pixels as they are sent."""
        pixels = source.read(tile.window)
        return pixels if self.send == "pixels" else _png(pixels)

    def keep(self, result: Result, tile: Tile, pixel_map: PixelMap | None) -> Record:
        """Write the map of the tile's cell and return its record.

        Raises `RevisionChangedError` where another revision answered.
        """
        if self.revision is not None and result.revision != self.revision:
            raise RevisionChangedError(
                f"revision {result.revision!r} answered tile {tile.index}; the run began with {self.revision!r}. "
                "Wait until the change is over and call again with start_over=True, or choose "
                "on_revision_change='restart' or 'allow'",
                model=result.model,
                revision=result.revision,
            )
        if result.size != (tile.window.height, tile.window.width):
            raise ProtocolError(f"tile {tile.index} of {tile.window} was answered for an image of {result.size}")
        values = map_of(result)
        if values is not None and pixel_map is not None:
            pixel_map.write(tile.cell, values[tile.cell.slices((tile.window.top, tile.window.left))])
        return record_of(result, tile, self.grid)

    def answer(self, client: Client, source: PixelSource, pixel_map: PixelMap | None, tile: Tile) -> Record:
        """Read, ask and keep: all that is done for a tile."""
        result = client.segment(self.image(source, tile), **self.asked.arguments())
        return self.keep(result, tile, pixel_map)


def _png(pixels: NDArray[Any]) -> bytes:
    from PIL import Image

    if pixels.dtype.itemsize > 1 and pixels.ndim == 3:
        raise BadRequestError("send='png' takes 8 bits a channel, or 16 bit grey; this image is 16 bit colour")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
