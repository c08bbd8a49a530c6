"""Pictures of what the zoo's networks answer: image, truth and answer, for people to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from examples.zoo.training import HERE
from segserve import InstanceResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from examples.zoo.world import Scene
    from segserve import Result

FOLDER: Final = HERE.parents[1] / "docs/images"
SHOWN: Final = (0, 8, 12, 16, 28)
"""Scenes, all of 128 x 128 pixels, that are drawn."""
LEAST_SCORE: Final = 0.5
ZOOM, GAP = 2, 4
COLOURS: Final = np.array([(0, 0, 0), (230, 25, 75), (60, 180, 75), (67, 99, 216), (255, 225, 25)], np.float64)


def write(network: str, scenes: Sequence[Scene], results: Sequence[Result]) -> None:
    """Write the picture of one network: a column a scene; image, truth and answer below each other."""
    columns = []
    for scene, result in zip(scenes, results, strict=True):
        instances = isinstance(result, InstanceResult)
        drawn = result.overlay(scene.image, labels=False, **({"colour_by": "class"} if instances else {}))
        parts = [scene.image, truth(scene, instances=instances), np.asarray(drawn.convert("RGB"))]
        columns.append(np.concatenate([_framed(part) for part in parts]))
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.concatenate(columns, 1))
    # Few pixels have the colours that matter; the palette must have them nevertheless.
    picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    picture.save(FOLDER / f"zoo-{network}.png", optimize=True)


def truth(scene: Scene, *, instances: bool) -> NDArray[np.uint8]:
    """Return a scene's image with the true classes in their colours, or with its objects in shades of them."""
    colours = COLOURS[scene.labels]
    if instances:
        colours = colours * (1 - 0.45 * (scene.objects % 3 / 2))[..., None]
    shown = np.where((scene.labels > 0)[..., None], 0.35 * scene.image + 0.65 * colours, scene.image)
    return np.asarray(shown.round(), np.uint8)


def _framed(image: NDArray[Any]) -> NDArray[np.uint8]:
    large = np.repeat(np.repeat(image, ZOOM, 0), ZOOM, 1)
    return np.pad(large, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255)
