"""Overlapping tiles against MONAI's sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.sliding_window import PADDINGS, Monai
from segserve_builder.stages.tile import TiledInference
from segserve_builder.steps.inference import run
from segserve_builder.steps.tiling import TilePlan, TileWeights, merged, stream

if TYPE_CHECKING:
    import torch

SIDES = st.integers(1, 60)
TILES = st.integers(2, 40)
OVERLAPS = st.floats(0, 0.8)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, TILES, TILES, OVERLAPS)
def test_tiles_start_where_monais_start(height: int, width: int, rows: int, columns: int, overlap: float) -> None:
    from monai.data.utils import dense_patch_slices
    from monai.inferers.utils import _get_scan_interval

    plan = TilePlan.of(TiledInference(height=rows, width=columns, overlap=overlap, multiple_of=1), height, width)
    size = (max(height, rows), max(width, columns))
    interval = _get_scan_interval(size, (rows, columns), 2, (overlap, overlap))

    expected = dense_patch_slices(size, (rows, columns), interval)

    padded = [(max(rows - height, 0) // 2, max(columns - width, 0) // 2)] * len(expected)
    assert [
        (row.start + before[0] - row.skip, column.start + before[1] - column.skip)
        for (row, column), before in zip(plan.grid, padded, strict=True)
    ] == [(vertical.start, horizontal.start) for vertical, horizontal in expected]


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 64), (512, 512)])
def test_weights_are_monais_importance_map(blend: Literal["gaussian", "constant"], size: tuple[int, int]) -> None:
    from monai.data.utils import compute_importance_map

    expected = compute_importance_map(size, mode=blend, sigma_scale=0.125)

    np.testing.assert_allclose(TileWeights.of(blend, *size).weights(), expected.numpy(), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, TILES, TILES, OVERLAPS, st.sampled_from(["gaussian", "constant"]))
def test_logits_and_labels_are_those_of_monai(
    height: int, width: int, rows: int, columns: int, overlap: float, blend: Any
) -> None:
    plan = TilePlan.of(
        TiledInference(height=rows, width=columns, overlap=overlap, multiple_of=1, blend=blend), height, width
    )
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(3, rows, columns)).astype(np.float32) for _ in plan.grid]
    if height < rows or width < columns:
        return  # padded images are the next test's

    expected = Monai(plan, logits, argmax=False)().numpy()

    np.testing.assert_allclose(merged(plan, logits), expected, atol=1e-5)
    labels = np.concatenate(list(stream(plan, logits)))
    best = np.sort(expected, axis=0)
    assert (labels == expected.argmax(0))[best[-1] - best[-2] > 1e-5].all()


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, TILES, TILES, OVERLAPS, st.sampled_from(list(PADDINGS)), st.integers(1, 5))
def test_a_network_over_tiles_says_what_it_says_under_monai(
    height: int, width: int, rows: int, columns: int, overlap: float, padding: Any, batch: int
) -> None:
    import torch
    from monai.inferers import sliding_window_inference

    image = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(0))
    kernel = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1)) / 9
    if padding == "reflect" and (rows - height >= 2 * height - 1 or columns - width >= 2 * width - 1):
        padding = "constant"  # torch mirrors an image no more than once
    options = TiledInference(height=rows, width=columns, overlap=overlap, multiple_of=1, padding=padding)

    def network(tiles: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(tiles, kernel, padding=1)

    expected = sliding_window_inference(
        image, (rows, columns), batch, network, overlap=overlap, mode="gaussian", padding_mode=PADDINGS[padding]
    )

    found = run(image.numpy(), "NCHW", lambda tiles: network(torch.from_numpy(tiles)).numpy(), [options], batch)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
