"""Large images: cut into tiles of one request each, the answers stitched into one result."""

from __future__ import annotations

from segserve.errors import CheckpointError, ImageTooLargeError, RevisionChangedError, WorkersLostError
from segserve.tiled.merging import TiledObject
from segserve.tiled.options import Options, TiledOptions
from segserve.tiled.results import TiledObjects, TiledSemanticResult, open_result
from segserve.tiled.segmenting import run_tiled, run_tiled_async

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
]
