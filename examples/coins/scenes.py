"""Draws labelled scenes of coins on a table: the only pictures that the networks are trained on."""

from __future__ import annotations

from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
from drawing import TURN, draw_coin, smooth_noise

if TYPE_CHECKING:
    from drawing import Floats
    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]
    Disc: TypeAlias = tuple[float, float, float]

CHUNK = 25
MOST_COINS = 60


def draw_pool(count: int, size: int, seed: int, processes: int = 2) -> tuple[Bytes, Bytes]:
    """Return `count` grey scenes and their labels, both uint8 (count, size, size).

    The same seed gives the same pool, whatever the number of processes.
    """
    jobs = [(seed * 100003 + chunk, size) for chunk in range(-(-count // CHUNK))]
    # A forked child would inherit torch's threads in an unknown state.
    with get_context("spawn").Pool(processes) as pool:
        parts = pool.starmap(_draw_chunk, jobs)
    images, labels = (np.concatenate(arrays)[:count] for arrays in zip(*parts, strict=True))
    return images, labels


def _draw_chunk(seed: int, size: int) -> tuple[Bytes, Bytes]:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng, size) for _ in range(CHUNK)]
    return np.stack([image for image, _ in scenes]), np.stack([labels for _, labels in scenes])


def draw_scene(rng: np.random.Generator, size: int) -> tuple[Bytes, Bytes]:
    """Return one grey scene and its labels, both uint8 (size, size): 0 is the table, 1.. are the coins."""
    light = rng.uniform(0, TURN)
    usual = float(np.exp(rng.uniform(np.log(9), np.log(46))))
    level = rng.uniform(25, 150)
    table = (_background(rng, size) + np.float32(level)).astype(np.float32)
    _clutter(rng, table)
    sign = 1 if rng.random() < 0.85 else -1
    contrast = sign * np.exp(rng.uniform(np.log(22), np.log(110)))
    coins = _layout(rng, size, usual) if rng.random() < 0.97 else []
    image = table - _shadow(rng, size, coins, usual, light)
    labels = np.zeros((size, size), np.uint8)
    follow = rng.uniform(0, 1)  # how much the coins share the table's uneven light
    for number, coin in enumerate(coins, 1):
        _place(rng, image, labels, number, coin, light, (table, follow, level, contrast))
    return _photographed(rng, image), labels


def _layout(rng: np.random.Generator, size: int, usual: float) -> list[Disc]:
    """Return (x, y, radius) of each coin: a jittered grid or random throws, some of them touching."""
    spread = rng.choice([0.08, 0.25])
    wanted = (_grid if rng.random() < 0.5 else _throws)(rng, size, usual, spread)
    touching, gap = rng.random() < 0.4, rng.uniform(0.5, 6)
    placed: list[Disc] = []
    for x, y, r in wanted:
        if touching and placed and rng.random() < 0.6:
            x, y = _rolled_against(rng, placed[rng.integers(len(placed))], r)
        least = -0.06 * r if touching else gap
        apart = all(np.hypot(x - a, y - b) > r + c + least for a, b, c in placed)
        if apart and -0.4 * r < x < size + 0.4 * r and -0.4 * r < y < size + 0.4 * r:
            placed.append((x, y, r))
    return placed[:MOST_COINS]


def _grid(rng: np.random.Generator, size: int, usual: float, spread: float) -> list[Disc]:
    step = 2 * usual * rng.uniform(1.15, 2.2)
    left, top = rng.uniform(0, step, 2)
    cells = range(-1, int(size / step) + 1)
    return [
        (
            left + i * step + rng.normal(0, 0.1 * usual),
            top + j * step + rng.normal(0, 0.1 * usual),
            usual * np.exp(rng.normal(0, spread)),
        )
        for i in cells
        for j in cells
        if rng.random() < 0.9
    ]


def _throws(rng: np.random.Generator, size: int, usual: float, spread: float) -> list[Disc]:
    return [
        (rng.uniform(0, size), rng.uniform(0, size), usual * np.exp(rng.normal(0, spread)))
        for _ in range(rng.integers(1, 40))
    ]


def _rolled_against(rng: np.random.Generator, other: Disc, radius: float) -> tuple[float, float]:
    """Return where a coin comes to lie that touches, or nearly touches, the other one."""
    angle, distance = rng.uniform(0, TURN), (other[2] + radius) * rng.uniform(0.97, 1.03)
    return other[0] + distance * np.cos(angle), other[1] + distance * np.sin(angle)


def _background(rng: np.random.Generator, size: int) -> Floats:
    """Return a table top without its level: uneven light, and grain, fibres or checks."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    angle = rng.uniform(0, TURN)
    table = rng.uniform(0, 70) * (x * np.cos(angle) + y * np.sin(angle))
    lamp_x, lamp_y = rng.uniform(-0.6, 0.6, 2)
    table += rng.uniform(-45, 45) * ((x - lamp_x) ** 2 + (y - lamp_y) ** 2)
    table += rng.uniform(0, 10) * smooth_noise(rng, size, size * rng.uniform(0.1, 0.5))
    kind = rng.random()
    if kind < 0.55:
        table = table + rng.uniform(0, 7) * smooth_noise(rng, size, rng.uniform(1.2, 6))
    elif kind < 0.75:
        threads = rng.standard_normal((size // 2, max(2, size // 40))).astype(np.float32)
        cloth = cv2.resize(threads, (size, size))
        table = table + rng.uniform(2, 12) * (cloth if rng.random() < 0.5 else cloth.T)
    elif kind < 0.85:
        period = rng.uniform(6, 40)
        table = table + rng.uniform(2, 10) * np.sign(np.sin(x * size / period) * np.sin(y * size / period))
    return np.ascontiguousarray(table, np.float32)


def _clutter(rng: np.random.Generator, table: Floats) -> None:
    """Draw specks, scratches and a border into `table`: nothing that is a coin."""
    size = table.shape[0]
    for _ in range(rng.integers(0, 14)):
        centre = tuple(int(v) for v in rng.integers(0, size, 2))
        radius = int(rng.integers(0, 3))
        cv2.circle(table, centre, radius, float(table.mean() + rng.uniform(-50, 90)), -1)
    for _ in range(rng.integers(0, 4)):
        _scratch(rng, table)
    if rng.random() < 0.3:
        _border(rng, table)


def _scratch(rng: np.random.Generator, table: Floats) -> None:
    size = table.shape[0]
    start, end = (tuple(int(v) for v in point) for point in rng.integers(0, size, (2, 2)))
    tone = float(table.mean() + rng.uniform(-30, 30))
    if rng.random() < 0.5:
        cv2.line(table, start, end, tone, 1)
        return
    tilt = rng.uniform(0, 360)
    axes = tuple(int(v) for v in rng.integers(10, size, 2))
    cv2.ellipse(table, start, axes, tilt, 0, rng.uniform(20, 160), tone, 1)


def _border(rng: np.random.Generator, table: Floats) -> None:
    """Darken or brighten one side of `table`, or its frame."""
    size = table.shape[0]
    depth, angle = rng.uniform(-0.15, 0.3) * size, rng.uniform(0, TURN)
    y, x = np.mgrid[:size, :size] - size / 2
    if rng.random() < 0.5:
        beyond = x * np.cos(angle) + y * np.sin(angle) - (size / 2 - depth)
    else:
        beyond = np.maximum(abs(x), abs(y)) - (size / 2 - 0.2 * abs(depth))
    table += np.clip(beyond + 0.5, 0, 1) * rng.uniform(-90, 90)


def _shadow(rng: np.random.Generator, size: int, coins: list[Disc], usual: float, light: float) -> Floats:
    """Return how much darker the table is where the coins keep the light off it."""
    shade: Floats = np.zeros((size, size), np.float32)
    offset = usual * rng.uniform(0, 0.18)
    for x, y, r in coins:
        centre = (int(x + offset * np.cos(light)), int(y + offset * np.sin(light)))
        cv2.circle(shade, centre, int(r * 1.03), 1.0, -1)
    strength = rng.uniform(0, 45)
    return np.asarray(strength * cv2.GaussianBlur(shade, (0, 0), max(0.8, usual * rng.uniform(0.04, 0.3))))


def _place(
    rng: np.random.Generator,
    image: Floats,
    labels: Bytes,
    number: int,
    coin: Disc,
    light: float,
    tones: tuple[Floats, float, float, float],
) -> None:
    """Draw one coin into `image` and `labels`; a coin wholly outside is drawn and dropped."""
    tone, coverage = draw_coin(rng, coin[2], light)
    side, size = tone.shape[0], image.shape[0]
    left, top = round(coin[0] - side / 2), round(coin[1] - side / 2)
    columns, rows = slice(max(0, left), min(size, left + side)), slice(max(0, top), min(size, top + side))
    if columns.stop <= columns.start or rows.stop <= rows.start:
        return
    patch = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    table, follow, level, contrast = tones
    under = follow * table[rows, columns].mean() + (1 - follow) * level
    base = under + contrast * np.exp(rng.normal(0, 0.25))
    alpha = coverage[patch]
    image[rows, columns] = image[rows, columns] * (1 - alpha) + (base + tone[patch]) * alpha
    labels[rows, columns][alpha > 0.5] = number


def _photographed(rng: np.random.Generator, image: Floats) -> Bytes:
    """Return the scene as a camera gives it: blur, sharpening halo, noise, gamma, sometimes JPEG."""
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 1.3))
    if rng.random() < 0.5:
        amount = rng.uniform(0.2, 1.3)
        image = image + amount * (image - cv2.GaussianBlur(image, (0, 0), rng.uniform(0.8, 2.5)))
    image = image + rng.uniform(0, 8) * rng.standard_normal(image.shape).astype(np.float32)
    gamma = np.exp(rng.uniform(-0.35, 0.35))
    grey = (255 * (np.clip(image, 0, 255) / 255) ** gamma).astype(np.uint8)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 90))]
        jpeg = cv2.imencode(".jpg", grey, quality)[1]
        grey = cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE)
    return np.asarray(grey, np.uint8)
