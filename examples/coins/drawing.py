"""Draws one struck coin: its outline, relief, shading and wear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.floating[Any]]

TURN = 6.28


def smooth_noise(rng: np.random.Generator, size: int, cell: float) -> Floats:
    """Return (size, size) noise of mean 0 and deviation 1 whose blobs are about `cell` pixels wide."""
    cells = max(2, int(size / cell) + 2)
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    noise: Floats = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray((noise - noise.mean()) / (noise.std() + 1e-6))


def draw_coin(rng: np.random.Generator, radius: float, light: float) -> tuple[Floats, Floats]:
    """Return a coin's tone, relative to its base level, and its coverage 0..1.

    Both are square and centred on the coin. `light` is the direction that the light falls in, in radians.
    """
    size = int(2 * np.ceil(radius * 1.35) + 3)
    y, x = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
    squash, turn = rng.uniform(0.86, 1.0), rng.uniform(0, TURN / 2)
    along = x * np.cos(turn) + y * np.sin(turn)
    across = (-x * np.sin(turn) + y * np.cos(turn)) / squash
    distance = np.hypot(along, across)
    edge = _outline(rng, np.arctan2(across, along), radius)
    coverage = np.clip(0.5 - (distance - edge), 0, 1).astype(np.float32)
    heights = _relief(rng, size, radius, (distance / edge).astype(np.float32))
    sunward = x * np.cos(light) + y * np.sin(light)
    tone = _struck(rng, heights, coverage, light)
    tone += rng.uniform(-15, 15) * sunward / radius  # the coin is a shallow dome
    tone += rng.uniform(0, 14) * smooth_noise(rng, size, radius * rng.uniform(0.3, 0.9))  # patina
    tone += rng.uniform(0, 10) * smooth_noise(rng, size, 1.3)  # grain of the metal
    tone += _lit_edge(rng, distance - edge, sunward / np.maximum(np.hypot(x, y), 1))
    return tone.astype(np.float32), coverage


def _outline(rng: np.random.Generator, angle: Floats, radius: float) -> Floats:
    """Return the edge's distance at each angle: low harmonics, sometimes a flat cut or a chipped notch."""
    edge = np.ones_like(angle)
    roughness = rng.choice([0.005, 0.015, 0.035], p=[0.4, 0.35, 0.25])
    for harmonic in range(2, 8):
        amplitude = roughness * rng.standard_normal() * (2.0 / harmonic)
        edge += amplitude * np.cos(harmonic * angle + rng.uniform(0, TURN))
    if rng.random() < 0.15:
        cosine = np.cos(angle - rng.uniform(0, TURN))
        edge = np.minimum(edge, np.where(cosine > 0.1, rng.uniform(0.82, 0.97) / np.maximum(cosine, 0.1), 9))
    if rng.random() < 0.12:
        away = np.angle(np.exp(1j * (angle - rng.uniform(0, TURN))))
        edge -= rng.uniform(0.05, 0.15) * np.exp(-((away / rng.uniform(0.08, 0.2)) ** 2))
    return np.asarray(np.clip(edge, 0.6, 1.3) * radius)


def _relief(rng: np.random.Generator, size: int, radius: float, reach: Floats) -> Floats:
    """Return a height map: figure, beads, rim and wear. `reach` is 0 at the centre and 1 at the edge."""
    heights: Floats = np.zeros((size, size), np.float32)
    if rng.random() < 0.7:
        for _ in range(rng.integers(2, 12)):
            _figure_stroke(rng, heights, radius)
    if rng.random() < 0.5:
        _beads(rng, heights, radius)
    if rng.random() < 0.6:
        rim = -(((reach - rng.uniform(0.84, 0.96)) / rng.uniform(0.03, 0.08)) ** 2)
        heights += rng.uniform(0.3, 1.5) * np.exp(rim)
    heights = cv2.GaussianBlur(heights, (0, 0), max(0.5, radius * rng.uniform(0.015, 0.06)))
    return heights + rng.uniform(0, 0.25) * smooth_noise(rng, size, max(1.5, radius * rng.uniform(0.08, 0.3)))


def _figure_stroke(rng: np.random.Generator, heights: Floats, radius: float) -> None:
    """Draw one line or ellipse of the figure into `heights`."""
    centre = heights.shape[0] / 2
    points = (centre + rng.normal(0, 0.33 * radius, (rng.integers(2, 6), 2))).astype(np.int32)
    height = float(rng.uniform(-1, 1.5))
    if rng.random() < 0.5:
        width = max(1, int(radius * rng.uniform(0.03, 0.16)))
        cv2.polylines(heights, [points.reshape(-1, 1, 2)], False, height, width)
        return
    axes = tuple(int(v) for v in np.maximum(1, radius * rng.uniform(0.06, 0.45, 2)))
    middle = (int(points[0, 0]), int(points[0, 1]))
    tilt = rng.uniform(0, 360)
    width = -1 if rng.random() < 0.6 else max(1, int(radius * 0.06))
    cv2.ellipse(heights, middle, axes, tilt, 0, 360, height, width)


def _beads(rng: np.random.Generator, heights: Floats, radius: float) -> None:
    """Draw a ring of beads, or of letters, near the rim into `heights`."""
    centre = heights.shape[0] / 2
    count, ring = int(rng.integers(8, 40)), rng.uniform(0.72, 0.9) * radius
    for angle in np.arange(count) * 2 * np.pi / count + rng.uniform(0, TURN):
        middle = (int(centre + ring * np.cos(angle)), int(centre + ring * np.sin(angle)))
        cv2.circle(heights, middle, max(1, int(radius * 0.04)), float(rng.uniform(0.5, 1.2)), -1)


def _struck(rng: np.random.Generator, heights: Floats, coverage: Floats, light: float) -> Floats:
    """Return how the relief catches the light."""
    slope = cv2.Sobel(heights, -1, 1, 0) * np.cos(light) + cv2.Sobel(heights, -1, 0, 1) * np.sin(light)
    slope = slope / (slope[coverage > 0.5].std() + 1e-3)
    return np.asarray(rng.uniform(3, 32) * np.clip(slope, -2.5, 2.5))


def _lit_edge(rng: np.random.Generator, outside: Floats, facing: Floats) -> Floats:
    """Return the bright or dark line along the edge; `facing` is 1 where the edge turns from the light."""
    line = np.exp(-(((outside + rng.uniform(0.5, 2)) / rng.uniform(0.7, 1.6)) ** 2))
    return np.asarray(line * (rng.uniform(-45, 10) * facing + rng.uniform(-15, 25)))
