"""Large images: cut into tiles that one request each can carry, and their answers stitched to one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from segserve.tiled.errors import CheckpointError, ImageTooLargeError, RevisionChangedError, WorkersLostError
from segserve.tiled.merging import TiledObject
from segserve.tiled.options import Options, TiledOptions
from segserve.tiled.results import TiledObjects, TiledSemanticResult, open_result
from segserve.tiled.segmenting import run_tiled, run_tiled_async

if TYPE_CHECKING:
    from segserve.client import Client
    from segserve.tiled.progress import Progress

__all__ = [
    "CheckpointError",
    "ImageTooLargeError",
    "Options",
    "RevisionChangedError",
    "TiledObject",
    "TiledObjects",
    "TiledOptions",
    "TiledSemanticResult",
    "WorkersLostError",
    "open_result",
    "run_tiled",
    "run_tiled_async",
    "segment_tiled",
]


def segment_tiled(
    image: object,
    *,
    model: str,
    client: Client | None = None,
    scheduler: Any = None,
    progress: Progress = True,
    **options: Unpack[TiledOptions],
) -> TiledSemanticResult | TiledObjects:
    """Segment a large image with `client`, or one of its own for the gateway of `SEGSERVE_URL`.

    It is `Client.segment_tiled`; see there.
    """
    from segserve.client import Client

    asked = Options.of(model, **options)
    if client is not None:
        return run_tiled(client, image, asked, scheduler=scheduler, progress=progress)
    with Client() as own:
        return run_tiled(own, image, asked, scheduler=scheduler, progress=progress)
