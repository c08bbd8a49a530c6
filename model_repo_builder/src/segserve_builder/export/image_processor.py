"""Reads the preprocessor_config.json of a transformers checkpoint: its image processor as options of stages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

FILE_NAME: Final = "preprocessor_config.json"
LARGEST_SIDE: Final = 16384
INTERPOLATIONS: Final[Mapping[int, Mapping[str, Any]]] = {
    0: {"interpolation": "nearest"},
    1: {"interpolation": "cubic", "antialias": True, "rounding": "eachPass"},
    2: {"antialias": True, "rounding": "eachPass"},
    3: {"interpolation": "cubic", "antialias": True, "rounding": "eachPass"},
}
"""Options of `resize` by Pillow's number of the filter, which is antialiased in both Pillow and torchvision."""
APPROXIMATE: Final = {
    0: "resample 0 (nearest, at the centres of pixels; `nearest` takes those of floor(i * old / new))",
    1: "resample 1 (lanczos; cubic is used)",
    4: "resample 4 (box; bilinear is used)",
    5: "resample 5 (hamming; bilinear is used)",
}
BILINEAR: Final = 2


@dataclass(frozen=True)
class ImageProcessor:
    """An image processor of transformers, by its configuration."""

    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits_images(self) -> bool:
        """Whether images are cut into parts."""
        return bool(self.config.get("do_split_image"))

    @property
    def colour(self) -> Literal["RGB", "BGR"]:
        """The order of the network's channels."""
        return "BGR" if self.config.get("do_flip_channel_order") else "RGB"

    @property
    def resampling(self) -> Mapping[str, Any]:
        """The interpolation, as options of `resize`."""
        return INTERPOLATIONS.get(self._resample, INTERPOLATIONS[BILINEAR])

    @property
    def square(self) -> int | None:
        """The side of the square that images are padded to, right and below; None if they are not."""
        padded = self.config.get("pad_size")
        edges = (self._size.get("shortest_edge"), self._size.get("longest_edge"))
        if not self.config.get("do_pad"):
            return None
        if isinstance(padded, dict):
            return padded.get("height") if padded.get("height") == padded.get("width") else None
        # EoMT pads to its longest edge; others only to the largest image of a batch.
        return edges[0] if edges[0] is not None and edges[0] == edges[1] else None

    @property
    def normalise(self) -> Mapping[str, Any] | None:
        """The options of `normalise`, None if the configuration has neither means nor a factor."""
        config = self.config
        normalises = bool(config.get("image_mean") and config.get("image_std")) and self._does("do_normalize")
        if not normalises and "rescale_factor" not in config:
            return None
        options: dict[str, Any] = {"mean": config["image_mean"], "std": config["image_std"]} if normalises else {}
        scale = config.get("rescale_factor", 1 / 255) if self._does("do_rescale") else 1.0
        return options if math.isclose(scale, 1 / 255, rel_tol=1e-6) else options | {"scale": scale}

    def resize(self, fixed: tuple[int, int] | None, multiple: int) -> Mapping[str, Any] | None:
        """Return the options of `resize`, None if the configuration does not say.

        `fixed` is the height and width of the network's input, None if they are free; the sides of a free one must be
        multiples of `multiple`.
        """
        size = self._size
        if {"height", "width"} <= size.keys():
            height, width = fixed or (size["height"], size["width"])
            return {"mode": "stretch", "height": height, "width": width, **self.resampling}
        if "shortest_edge" not in size:
            return None
        longest = size.get("longest_edge", LARGEST_SIDE)
        options = {"mode": "shortSide", "size": min(size["shortest_edge"], longest), "maxSize": longest}
        if fixed not in (None, (self.square, self.square)):
            return None
        multiple = self.square or multiple
        return {**options, **self.resampling, **({"multipleOf": multiple} if multiple > 1 else {})}

    def not_done(self) -> tuple[str, ...]:
        """Return what the processor does and no stage can."""
        config, size = self.config, self._size
        sides = [size[key] for key in ("height", "width") if key in size]
        found = [APPROXIMATE[self._resample]] if self._resample in APPROXIMATE else []
        crop = config.get("crop_size")
        if config.get("do_center_crop") and crop != size:
            found.append(f"do_center_crop to {_shown(crop)}")
        if config.get("keep_aspect_ratio"):
            found.append("keep_aspect_ratio")
        for key in ("size_divisor", "ensure_multiple_of"):
            divisor = config.get(key) or 1
            if not sides or any(side % divisor for side in sides):
                found += [f"{key} {divisor}"] if divisor > 1 else []
        if config.get("do_pad") and config.get("pad_size"):
            how = "" if self.square is None else " with zeros after, not before, normalisation"
            found.append(f"pad_size {_shown(config['pad_size'])}{how}")
        if size and not ({"height", "width"} <= size.keys() or "shortest_edge" in size):
            found.append(f"size {_shown(size)}")
        return tuple(found)

    @property
    def _resample(self) -> int:
        number = self.config.get("resample")
        return number if isinstance(number, int) and self._does("do_resize") else BILINEAR

    def _does(self, step: str) -> bool:
        """Return whether a step is on: where the configuration names its class, it leaves out only what is not set."""
        return bool(self.config.get(step, "image_processor_type" not in self.config))

    @property
    def _size(self) -> Mapping[str, int]:
        """The size as transformers 4.26 and later write it; earlier ones wrote a number or a pair."""
        size = self.config.get("size") if self._does("do_resize") else None
        if isinstance(size, int):
            longest = self.config.get("max_size")
            edges = {"shortest_edge": size, "longest_edge": longest}
            size = {"height": size, "width": size} if longest is None else edges
        if isinstance(size, list) and len(size) == 2:
            size = {"height": size[0], "width": size[1]}
        return {key: side for key, side in size.items() if isinstance(side, int)} if isinstance(size, dict) else {}


def read_image_processor(folder: Path) -> ImageProcessor:
    """Return the image processor of the file in `folder`; an empty one if there is no such file."""
    try:
        config = json.loads((folder / FILE_NAME).read_text())
    except (OSError, ValueError):
        config = {}
    return ImageProcessor(config if isinstance(config, dict) else {})


def _shown(size: Any) -> str:
    return " x ".join(str(side) for side in size.values()) if isinstance(size, dict) else str(size)
