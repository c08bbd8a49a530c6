"""Months of answers in which drifts are planted: what `bench.archive.drift` and `bench.archive.drift_peers` are given.

It needs numpy and Pillow alone, as the peers have an environment of their own.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

CAMERAS: Final = 4
SCENES: Final = 6
"""Parts of the photograph that each camera shows in turn."""
LEVELS: Final = (0.7, 0.85, 1.0, 1.15, 1.3)
"""Brightness in the course of a day."""
EMPTY: Final = 0.1
"""Share of scenes without a coin."""
WINDOW_S: Final = 300
ANSWERS: Final = 60
SCENE_ANSWERS: Final = 20
DAYS: Final = 30
RUNS: Final = 3
PLANTED_DAY: Final = 15.3
T = TypeVar("T")
"""What is known of an answer."""


def _noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, float) + np.random.default_rng(1).normal(0.0, 25.0, (image.height, image.width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=8)
    return Image.open(file).convert("RGB")


@dataclass(frozen=True, slots=True)
class Planted:
    """A drift: what becomes of images, of how many cameras, and the share of scenes without a coin."""

    says: str
    change: Callable[[Image.Image], Image.Image] = lambda image: image
    cameras: int = CAMERAS
    empty: float = EMPTY


DRIFTS: Final = {
    "none": Planted("none"),
    "brightness": Planted("half as bright", lambda image: ImageEnhance.Brightness(image).enhance(0.5)),
    "blur": Planted("blurred, radius 3", lambda image: image.filter(ImageFilter.GaussianBlur(3))),
    "noise": Planted("noise, sd 25 of 255", _noisy),
    "jpeg": Planted("JPEG of quality 8", _jpeg),
    "mix": Planted("half of the scenes without a coin instead of a tenth", empty=0.5),
    "turned": Planted("one of four cameras turned by 90 degrees", lambda image: image.rotate(90, expand=True), 1),
    "upside down": Planted("one of four cameras upside down", lambda image: image.rotate(180), 1),
    "one noisy": Planted("one of four cameras noisy, sd 25 of 255", _noisy, 1),
}


@dataclass(slots=True)
class Month(Generic[T]):
    """Windows of a month, drawn from answers by level of brightness and scene, the empty ones last.

    Until the day of the drift they are those of `before`, from then on of `after`.
    """

    before: list[list[T]]
    after: list[list[T]]
    planted: Planted
    random: np.random.Generator

    def window(self, number: int) -> list[tuple[T, int]]:
        """Return the answers of the next window, which has this number, and how often each was given."""
        days = number * WINDOW_S / 86400
        level = round(2 + 2 * np.sin(2 * np.pi * days))
        drifted = days >= PLANTED_DAY
        answers: list[tuple[T, int]] = []
        for camera in range(CAMERAS):
            table = self.after if drifted and camera < self.planted.cameras else self.before
            empty = self.planted.empty if drifted else EMPTY
            left = int(self.random.poisson(ANSWERS / CAMERAS))
            while left > 0:
                lasting = min(int(self.random.geometric(1 / SCENE_ANSWERS)), left)
                coins = self.random.random() >= empty
                scene = camera * SCENES + self.random.integers(SCENES) if coins else -1 - self.random.integers(4)
                # A cloud now and then.
                shown = int(np.clip(level + self.random.integers(-1, 2), 0, len(LEVELS) - 1))
                answers.append((table[shown][scene], lasting))
                left -= lasting
        return answers
