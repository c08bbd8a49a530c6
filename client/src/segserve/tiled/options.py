"""The options of tiled segmentation, validated before anything is sent."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypedDict, Unpack

from segserve.calls.steps import check_option_names
from segserve.tiled.merging import SAME
from segserve_common.errors import BadRequestError

MapFormat: TypeAlias = Literal["zarr", "npy"]
Blend: TypeAlias = Literal["centre"]
TileEncoding: TypeAlias = Literal["pixels", "png"]
OnRevisionChange: TypeAlias = Literal["error", "restart", "allow"]

BLENDS: Final[tuple[Blend, ...]] = ("centre",)
TILE_ENCODINGS: Final[tuple[TileEncoding, ...]] = ("pixels", "png")
MAP_FORMATS: Final[tuple[MapFormat, ...]] = ("zarr", "npy")
ON_REVISION_CHANGE: Final[tuple[OnRevisionChange, ...]] = ("error", "restart", "allow")


class TiledOptions(TypedDict, total=False):
    """The options of `segment_tiled` except the model.

    - `tile` (1024) and `overlap` (128) are in pixels of the image. The network sees half the overlap around the part of
      a tile that counts; an object smaller than the overlap is seen whole by some tile.
    - `blend`: `centre` gives every pixel the answer of the tile whose cut edges are farthest away.
    - `out` is a folder for the result: `labels.zarr` (or `.npy`), `objects.jsonl`, `ids.zarr`, `result.json`. Without
      it the result is in memory.
    - `checkpoint` is a folder for answered tiles until the run is complete; by default inside `out`. The same call
      again sends only the missing tiles. `start_over` deletes what another run has left.
    - `id_map` also writes the map of object ids, for instance and detection models.
    - `labels` is the format of maps in `out`: `zarr` (default with the extra `batch`, which it needs) or `npy`.
    - `send` is the format of tiles in requests: `pixels` uncompressed, `png` for slow networks.
    - `same_at_least` (0.5) is the agreement from which objects of two tiles are one; see `matching.strength`.
    - `on_revision_change` is the reaction to a new revision during the run: `error`, `restart` with the new one, or
      `allow` a result of both.
    - `in_flight` (8) is the number of concurrent tiles; the same number is held in memory.
    - `score_threshold`, `max_detections` and `timeout_s` apply to each tile, as in `Client.segment`.
    """

    tile: int
    overlap: int
    blend: Blend
    out: str | os.PathLike[str] | None
    checkpoint: str | os.PathLike[str] | None
    start_over: bool
    id_map: bool
    labels: MapFormat
    send: TileEncoding
    score_threshold: float | None
    max_detections: int | None
    timeout_s: float | None
    same_at_least: float
    on_revision_change: OnRevisionChange
    in_flight: int


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a tiled segmentation; see `TiledOptions`. Raises `BadRequestError` for invalid values."""

    model: str
    tile: int = 1024
    overlap: int = 128
    blend: Blend = "centre"
    out: Path | None = None
    checkpoint: Path | None = None
    start_over: bool = False
    id_map: bool = False
    labels: MapFormat = field(default_factory=lambda: "zarr" if find_spec("zarr") else "npy")
    send: TileEncoding = "pixels"
    score_threshold: float | None = None
    max_detections: int | None = None
    timeout_s: float | None = None
    same_at_least: float = SAME
    on_revision_change: OnRevisionChange = "error"
    in_flight: int = 8

    @classmethod
    def of(cls, model: str, **given: Unpack[TiledOptions]) -> Options:
        """Return the options of a call; paths may be strings. Raises `TypeError` for a name that is unknown."""
        check_option_names(given, cls)
        values: dict[str, Any] = {**given}
        paths = {name: Path(values[name]) for name in ("out", "checkpoint") if values.get(name) is not None}
        return cls(model, **(values | paths))

    def __post_init__(self) -> None:
        for name in ("tile", "overlap", "in_flight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise BadRequestError(f"{name} must be a whole number, got {value!r}")
        _check("blend", self.blend, BLENDS)
        _check("labels", self.labels, MAP_FORMATS)
        _check("send", self.send, TILE_ENCODINGS)
        _check("on_revision_change", self.on_revision_change, ON_REVISION_CHANGE)
        if not 1 <= self.in_flight <= 256:
            raise BadRequestError(f"in_flight must be 1 to 256, got {self.in_flight!r}")
        if not isinstance(self.same_at_least, int | float) or not 0 < self.same_at_least <= 1:
            raise BadRequestError(f"same_at_least must be above 0 and at most 1, got {self.same_at_least!r}")


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        why = "; label maps cannot be averaged, and servers do not send probabilities" if name == "blend" else ""
        raise BadRequestError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{why}")
