"""Blending of tiles as MONAI's sliding window does it, and as its definition reads in numpy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from segserve_builder.kernels.blend import TileWeights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from segserve_builder.steps.tiling import TilePlan

PADDINGS = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def weighted_sums(plan: TilePlan, logits: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of the weighted tiles (C, h, w), and the sums of their weights (h, w)."""
    grid = plan.logits_grid(*logits[0].shape[1:])
    weight = TileWeights.of(plan.options.blend, *logits[0].shape[1:]).weights()
    total = np.zeros((len(logits[0]), grid.height, grid.width), np.float32)
    weights = np.zeros((grid.height, grid.width), np.float32)
    for (row, column), tile in zip(grid, logits, strict=True):
        there = np.s_[row.start : row.start + row.size, column.start : column.start + column.size]
        here = np.s_[row.skip : row.skip + row.size, column.skip : column.skip + column.size]
        total[(slice(None), *there)] += tile[(slice(None), *here)] * weight[here]
        weights[there] += weight[here]
    return total, weights


def labels_row_by_row(plan: TilePlan, logits: Iterator[np.ndarray], classes: int) -> Iterator[np.ndarray]:
    """Yield the labels of the weighted sums, with the sums of no more than two rows of tiles in memory."""
    grid = plan.grid
    weight = TileWeights.of(plan.options.blend, plan.options.height, plan.options.width).weights()
    kept = np.zeros((classes, 0, grid.width), np.float32)
    for row in grid.rows:
        sums = np.zeros((classes, row.size, grid.width), np.float32)
        sums[:, : kept.shape[1]] = kept
        for column in grid.columns:
            here = np.s_[row.skip : row.skip + row.size, column.skip : column.skip + column.size]
            there = np.s_[:, :, column.start : column.start + column.size]
            sums[there] += next(logits)[(slice(None), *here)] * weight[here]
        yield sums[:, : row.done].argmax(0).astype(np.uint8)
        kept = sums[:, row.done :]


class Monai:
    """MONAI's `sliding_window_inference` over tiles that a network has answered already."""

    def __init__(self, plan: TilePlan, logits: Sequence[np.ndarray], argmax: bool) -> None:
        import torch

        self._plan, self._argmax = plan, argmax
        self._source = [torch.from_numpy(tile) for tile in logits]
        self._tiles = [tile.clone() for tile in self._source]
        self._image = torch.zeros(1, 1, plan.grid.height, plan.grid.width)

    def __call__(self) -> torch.Tensor:
        """Return the merged logits (C, H, W), or their labels."""
        from monai.inferers import sliding_window_inference

        # It multiplies what the network gave in place.
        for tile, source in zip(self._tiles, self._source, strict=True):
            tile.copy_(source)
        options, tiles = self._plan.options, iter(self._tiles)
        self._started = time.perf_counter()
        merged = sliding_window_inference(
            self._image,
            (options.height, options.width),
            1,
            lambda _: next(tiles)[None],
            overlap=options.overlap,
            mode=options.blend,
            padding_mode=PADDINGS[options.padding],
        )
        found: torch.Tensor = merged[0].argmax(0) if self._argmax else merged[0]
        self._seconds = time.perf_counter() - self._started
        return found

    def seconds(self) -> float:
        """Return how long a call takes, without the copies of what it destroys."""
        self()
        return self._seconds
