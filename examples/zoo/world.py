"""Draws the zoo's world: textured shapes on textured ground, with the label and the object of every pixel known.

Classes differ by shape, most objects also by hue and by texture. Objects overlap and hide each other.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]
    Floats: TypeAlias = NDArray[np.float32]

CLASSES: Final = ("background", "disc", "box", "wire", "star")
DISC, BOX, WIRE, STAR = 1, 2, 3, 4
SIZE: Final = 128
FINE: Final = 4  # shapes are drawn this many times finer, so that a pixel's coverage is known to 1/16
OFTEN: Final = {DISC: 0.4, BOX: 0.38, WIRE: 0.22}
STRIPES, CHECKS, BLOBS, PLAIN = range(4)
TEXTURES: Final = {DISC: STRIPES, BOX: CHECKS, WIRE: PLAIN, STAR: BLOBS}
HUES: Final = {DISC: 0.0, BOX: 0.36, WIRE: 0.65, STAR: 0.16}  # parts of a turn, from red
HUE_SPREAD: Final = 0.05
TYPICAL: Final = 0.92  # objects with the texture of their class, and as many with its hue
STAR_SCENES: Final = 0.4  # the rare class: at most one in a scene
TINY: Final = 0.2
LEAST_PIXELS, LEAST_VISIBLE = 12, 0.4
LEAST_CONTRAST: Final = 60.0
TRIES: Final = 14


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture, uint8 (H, W, 3) RGB, with what is in it.

    `labels` uint8 (H, W) are class ids. `objects` uint8 (H, W) are the numbers of the objects, from 1, and 0 where
    there is ground; `classes` int32 (N,) are the class ids of objects 1 to N, each of which is seen somewhere. A pixel
    is of the uppermost object that covers at least half of it.
    """

    image: Bytes
    labels: Bytes
    objects: Bytes
    classes: NDArray[np.int32]


def draw_scene(rng: np.random.Generator, height: int = SIZE, width: int = SIZE) -> Scene:
    """Return one scene of 4 to 13 objects, fewer where there is no room; the same generator state draws the same."""
    image = _ground(rng, height, width)
    objects = np.zeros((height, width), np.uint8)
    areas: list[int] = []
    classes: list[int] = []
    for class_id in _wanted(rng):
        coverage = _place(rng, class_id, objects, areas)
        if coverage is None:
            continue
        classes.append(class_id)
        objects[coverage >= 0.5] = len(classes)
        areas.append(int((coverage >= 0.5).sum()))
        kind = TEXTURES[class_id] if rng.random() < TYPICAL else int(rng.integers(4))
        tone = _texture(rng, height, width, kind, _colour(rng, class_id, beside=image[coverage > 0].mean(0)))
        image += coverage[..., None] * (tone - image)
    labels = np.array([0, *classes], np.uint8)[objects]
    return Scene(_photographed(rng, image), labels, objects, np.array(classes, np.int32))


def draw_scenes(count: int, seed: int, sizes: tuple[tuple[int, int], ...] = ((SIZE, SIZE),)) -> list[Scene]:
    """Return `count` scenes whose (height, width) go through `sizes` in turn; scene i does not depend on `count`."""
    return [draw_scene(np.random.default_rng([seed, number]), *sizes[number % len(sizes)]) for number in range(count)]


def _wanted(rng: np.random.Generator) -> list[int]:
    """Return the classes of a scene's objects, the lowest first."""
    wanted = rng.choice(list(OFTEN), rng.integers(4, 13), p=list(OFTEN.values())).tolist()
    if rng.random() < STAR_SCENES:
        wanted.insert(int(rng.integers(0, len(wanted) + 1)), STAR)
    return wanted


def _place(rng: np.random.Generator, class_id: int, objects: Bytes, areas: list[int]) -> Floats | None:
    """Return the coverage (H, W) of a new object that leaves enough to be seen of those before it, or None."""
    for _ in range(TRIES):
        coverage = _coverage(_outline(rng, class_id, objects.shape), objects.shape)
        mask = coverage >= 0.5
        left = np.bincount(objects[~mask], minlength=len(areas) + 1)[1:]
        least = np.maximum(LEAST_PIXELS, LEAST_VISIBLE * np.array(areas))
        if mask.sum() >= LEAST_PIXELS and bool((left >= least).all()):
            return coverage
    return None


def _outline(rng: np.random.Generator, class_id: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the corners (N, 2), x and y in pixels, of a shape of this class."""
    centre = rng.uniform(0, shape[::-1])
    turn = rng.uniform(0, 2 * np.pi)
    tiny = class_id in (DISC, BOX) and rng.random() < TINY
    radius = rng.uniform(3.2, 4.6) if tiny else float(np.exp(rng.uniform(np.log(7), np.log(25))))
    if class_id == DISC:
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = radius * np.stack([np.cos(angle), np.sin(angle) * rng.uniform(0.75, 1)], 1)
    elif class_id == BOX:
        points = radius * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, rng.uniform(0.5, 1)] * 0.85
    elif class_id == WIRE:
        points = _wire(rng)
    else:
        angle = np.linspace(0, 2 * np.pi, 10, endpoint=False)
        reach = max(radius, 9.0) * np.where(np.arange(10) % 2, 0.45, 1.15)
        points = np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None]
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.asarray(points @ rotation + centre)


def _wire(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the outline of a bent line of 2.2 to 3.4 pixels across."""
    length, sag, width = rng.uniform(26, 60), rng.uniform(-0.35, 0.35), rng.uniform(2.2, 3.4)
    along = np.linspace(-0.5, 0.5, 24)
    middle = length * np.stack([along, sag * (1 - 4 * along**2)], 1)
    slope = np.gradient(middle, axis=0)
    normal = np.stack([-slope[:, 1], slope[:, 0]], 1) / np.linalg.norm(slope, axis=1, keepdims=True)
    return np.concatenate([middle + normal * width / 2, (middle - normal * width / 2)[::-1]])


def _coverage(outline: NDArray[np.float64], shape: tuple[int, ...]) -> Floats:
    """Return which part of each pixel (H, W) lies inside of the outline, in steps of 1/16."""
    height, width = shape
    fine = np.zeros((height * FINE, width * FINE), np.uint8)
    cv2.fillPoly(fine, [np.round(outline * FINE - 0.5).astype(np.int32)], 1)
    return fine.reshape(height, FINE, width, FINE).sum((1, 3), dtype=np.float32) / FINE**2


def _colour(rng: np.random.Generator, class_id: int, beside: Floats) -> Floats:
    """Return the colour of an object, one that can be told from the colour `beside`."""
    while True:
        hue = rng.normal(HUES[class_id], HUE_SPREAD) if rng.random() < TYPICAL else rng.random()
        colour = _rgb(hue, rng.uniform(0.45, 0.95), rng.uniform(0.35, 0.95))
        if np.linalg.norm(colour - beside) > LEAST_CONTRAST:
            return colour


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def _texture(rng: np.random.Generator, height: int, width: int, kind: int, colour: Floats) -> Floats:
    """Return a field (H, W, 3) of stripes, checks or blobs around a colour."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 12)
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    if kind == STRIPES:
        wave = np.sin(u)
    elif kind == CHECKS:
        wave = np.sign(np.sin(u) * np.sin(v))
    elif kind == BLOBS:
        wave = _blobs(rng, height, width, period)
    else:
        wave = np.zeros_like(u)
    depth = rng.uniform(14, 40) * rng.uniform(0.5, 1, 3)
    return np.asarray(colour + wave[..., None] * depth, np.float32)


def _blobs(rng: np.random.Generator, height: int, width: int, cell: float) -> Floats:
    """Return smooth noise of deviation about 1 whose blobs are `cell` pixels wide."""
    coarse = rng.standard_normal((int(height / cell) + 2, int(width / cell) + 2)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _ground(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Return the ground: faint textures with a soft border between them, in uneven light."""
    ground = _field(rng, height, width)
    if rng.random() < 0.6:
        share = 1 / (1 + np.exp(-2 * _blobs(rng, height, width, rng.uniform(40, 90))))
        ground += share[..., None] * (_field(rng, height, width) - ground)
    return np.asarray(ground + rng.uniform(0, 18) * _blobs(rng, height, width, 60)[..., None], np.float32)


def _field(rng: np.random.Generator, height: int, width: int) -> Floats:
    colour = _rgb(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.25, 0.9))
    return colour + rng.uniform(0.2, 0.7) * (_texture(rng, height, width, int(rng.integers(4)), colour) - colour)


def _photographed(rng: np.random.Generator, image: Floats) -> Bytes:
    """Return the scene as a camera gives it: a little blur, noise, a change of gamma."""
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))
    noisy: NDArray[Any] = image + rng.uniform(1, 9) * rng.standard_normal(image.shape)
    return (255 * (np.clip(noisy, 0, 255) / 255) ** np.exp(rng.uniform(-0.25, 0.25))).astype(np.uint8)
