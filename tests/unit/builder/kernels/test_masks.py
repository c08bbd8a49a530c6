"""YOLO-seg masks against torch's interpolate and grid_sample, with pycocotools for the encoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from segserve_builder.kernels.masks import mask_rles
from segserve_builder.sampling import axes
from segserve_builder.values import ResizeTransform

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2


def head(n: int, k: int, h: int, w: int, height: int, width: int, seed: int) -> tuple[np.ndarray, ...]:
    """Prototypes, coefficients and boxes, some of which leave the image or are empty."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-0.2, 0.9, (n, 2)) * (width, height)
    size = rng.uniform(-0.02, 0.9, (n, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + size], axis=1)
    return (
        rng.normal(size=(k, h, w)).astype(np.float32),
        rng.normal(size=(n, k)).astype(np.float32),
        boxes.astype(np.float32),
    )


def cropped(masks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    y, x = np.arange(masks.shape[1])[:, None], np.arange(masks.shape[2])
    x0, y0, x1, y1 = boxes.T[:, :, None, None]
    return masks & (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def decoded(counts: tuple[bytes, ...], height: int, width: int) -> np.ndarray:
    masks = [coco.decode({"size": [height, width], "counts": c}) for c in counts]
    return np.array(masks).reshape(-1, height, width) > 0


def by_torch(prototypes: np.ndarray, coefficients: np.ndarray, height: int, width: int) -> np.ndarray:
    from oracles.one_thread import functional, torch

    low = np.tensordot(coefficients, prototypes, 1)[None]
    return functional.interpolate(torch.from_numpy(low), (height, width), mode="bilinear")[0].numpy()


def by_grid_sample(low: np.ndarray, p: ResizeTransform) -> np.ndarray:
    from oracles.one_thread import functional, torch

    h, w = low.shape[1:]
    rows, columns = axes(p, h, w)
    content = low[:, rows.first : rows.first + rows.cells, columns.first : columns.first + columns.cells]
    y = ((np.arange(p.height) + 0.5) * p.inner_height / p.height + p.top) * h / p.input_height - rows.first
    x = ((np.arange(p.width) + 0.5) * p.inner_width / p.width + p.left) * w / p.input_width - columns.first
    grid = np.stack(np.meshgrid(x * 2 / columns.cells - 1, y * 2 / rows.cells - 1), axis=-1)
    return functional.grid_sample(
        torch.from_numpy(content)[None], torch.from_numpy(grid)[None], padding_mode="border", align_corners=False
    )[0].numpy()


@pytest.mark.parametrize(
    ("net", "size"),
    [((96, 96), (384, 384)), ((160, 160), (640, 640)), ((160, 160), (800, 1333)), ((96, 96), (61, 40))],
)
def test_stretched_masks_are_those_of_torch_but_for_one_pixel_in_a_million(
    net: tuple[int, int], size: tuple[int, int]
) -> None:
    prototypes, coefficients, boxes = head(12, 32, *net, *size, seed=1)
    prototypes = by_torch(prototypes[:, ::8, ::8], np.eye(32, dtype=np.float32), *net)

    counts = mask_rles(prototypes, coefficients, boxes, *axes(ResizeTransform(*size, 0, 0, *net, *net), *net))

    expected = cropped(by_torch(prototypes, coefficients, *size) > 0, boxes)
    assert np.count_nonzero(decoded(counts, *size) != expected) <= 1e-6 * expected.size


@st.composite
def letterboxes(draw: st.DrawFn) -> ResizeTransform:
    height, width = draw(st.integers(1, 120)), draw(st.integers(1, 120))
    inner_height, inner_width = draw(st.integers(1, 100)), draw(st.integers(1, 100))
    top, left = draw(st.integers(0, 30)), draw(st.integers(0, 30))
    below, beside = draw(st.integers(0, 30)), draw(st.integers(0, 30))
    size = (top + inner_height + below, left + inner_width + beside)
    return ResizeTransform(height, width, top, left, inner_height, inner_width, *size)


@settings(max_examples=200, deadline=None)
@given(
    letterboxes(), st.integers(0, 4), st.integers(1, 9), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from([-1.0, 0.0, 0.5]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_placement_gives_the_masks_of_grid_sample_but_for_float_ties(
    p: ResizeTransform, n: int, k: int, h: int, w: int, threshold: float, seed: int
) -> None:
    prototypes, coefficients, boxes = head(n, k, h, w, p.height, p.width, seed)

    counts = mask_rles(prototypes, coefficients, boxes, *axes(p, h, w), threshold)

    exact = by_grid_sample(np.tensordot(coefficients.astype(np.float64), prototypes.astype(np.float64), 1), p)
    wrong = decoded(counts, p.height, p.width) != cropped(exact > threshold, boxes)
    assert np.abs(exact - threshold)[wrong].max(initial=0) < 5e-5


def test_masks_are_the_same_together_as_one_by_one() -> None:
    prototypes, coefficients, boxes = head(60, 32, 160, 160, 320, 320, seed=5)  # more than are made in one go
    boxes[::2] = [0, 0, 320, 320]
    where = axes(ResizeTransform.of(320, 320), 160, 160)

    together = mask_rles(prototypes, coefficients, boxes, *where)

    alone = [mask_rles(prototypes, c[None], b[None], *where)[0] for c, b in zip(coefficients, boxes, strict=True)]
    assert list(together) == alone


def test_a_box_outside_the_image_gives_an_empty_mask() -> None:
    prototypes, coefficients = np.ones((1, 8, 8), np.float32), np.ones((2, 1), np.float32)
    boxes = np.array([[40, 40, 50, 50], [-9, -9, -1, -1]], np.float32)

    counts = mask_rles(prototypes, coefficients, boxes, *axes(ResizeTransform.of(32, 32), 8, 8))

    assert not decoded(counts, 32, 32).any()


def test_shapes_that_do_not_fit_are_refused() -> None:
    prototypes, coefficients, boxes = head(2, 4, 8, 8, 32, 32, seed=0)

    with pytest.raises(ValueError, match="shapes"):
        mask_rles(prototypes, coefficients[:, :3], boxes, *axes(ResizeTransform.of(32, 32), 8, 8))
    with pytest.raises(ValueError, match="do not cover"):
        mask_rles(prototypes, coefficients, boxes, *axes(ResizeTransform.of(32, 32), 9, 8))
