"""Overlapping tiles against their plain definition in numpy."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from oracles.sliding_window import weighted_sums
from segserve_builder.errors import PipelineError
from segserve_builder.kernels.blend import add_tile, divide_rows
from segserve_builder.stages.tile import TiledInference
from segserve_builder.steps.tiling import Span, TileGrid, TilePlan, TileWeights, answers, merged, stream, tiles

BLENDS = ("gaussian", "hann", "linear", "constant")
PADDINGS: dict[str, dict[str, Any]] = {
    "reflect": {"mode": "reflect"},
    "edge": {"mode": "edge"},
    "constant": {"mode": "constant", "constant_values": 7},
}


@st.composite
def plans(draw: st.DrawFn) -> tuple[TilePlan, int]:
    """Tiles over an image, and how many times smaller their logits are."""
    ratio = draw(st.sampled_from([1, 1, 2, 4]))
    multiple = ratio * draw(st.integers(1, 3))
    sides = [ratio * draw(st.integers(-(-multiple // ratio), 24)) for _ in range(2)]
    overlap = draw(st.one_of(st.floats(0, 0.95), st.integers(1, max(1, min(sides) - 1)).map(float)))
    if overlap >= min(sides):
        overlap = 0.5
    options = TiledInference(
        height=sides[0], width=sides[1], overlap=overlap, multiple_of=multiple, blend=draw(st.sampled_from(BLENDS))
    )
    return TilePlan.of(options, ratio * draw(st.integers(1, 60)), ratio * draw(st.integers(1, 60))), ratio


def some_logits(plan: TilePlan, ratio: int, classes: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (classes, plan.options.height // ratio, plan.options.width // ratio)
    return [rng.normal(size=shape).astype(np.float32) for _ in plan.grid]


def reader(image: np.ndarray) -> Any:
    return lambda top, left, height, width: image[..., top : top + height, left : left + width]


@settings(max_examples=100, deadline=None)
@given(plans(), st.integers(2, 5), st.integers(0, 99))
def test_labels_are_exactly_those_of_the_weighted_sums(drawn: tuple[TilePlan, int], classes: int, seed: int) -> None:
    plan, ratio = drawn
    logits = some_logits(plan, ratio, classes, seed)

    labels = np.concatenate(list(stream(plan, logits)))

    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, weighted_sums(plan, logits)[0].argmax(0))


@settings(max_examples=100, deadline=None)
@given(plans(), st.integers(1, 3), st.integers(0, 99))
def test_merged_logits_are_exactly_the_weighted_means(drawn: tuple[TilePlan, int], classes: int, seed: int) -> None:
    plan, ratio = drawn
    logits = some_logits(plan, ratio, classes, seed)
    total, weights = weighted_sums(plan, logits)

    found = merged(plan, logits)

    assert found.dtype == np.float32
    if len(plan.grid) > 1:
        np.testing.assert_array_equal(found, total / weights)
    else:
        np.testing.assert_allclose(found, total / weights, rtol=1e-6, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(plans())
def test_tiles_cover_the_image_and_say_what_they_share(drawn: tuple[TilePlan, int]) -> None:
    plan, _ = drawn
    options = plan.options
    for spans, size, tile in (
        (plan.grid.rows, plan.grid.height, options.height),
        (plan.grid.columns, plan.grid.width, options.width),
    ):
        assert sum(span.done for span in spans) == size
        assert (spans[0].start, spans[-1].start + spans[-1].size, spans[0].old) == (0, size, 0)
        assert all(span.start % options.multiple_of == 0 == span.skip % options.multiple_of for span in spans)
        assert all(0 < span.skip + span.size <= tile for span in spans)
        for one, other in pairwise(spans):
            assert one.done == other.start - one.start > 0
            assert other.old == one.start + one.size - other.start >= 0


@settings(max_examples=60, deadline=None)
@given(plans(), st.sampled_from(list(PADDINGS)), st.booleans())
def test_a_network_that_answers_pixels_gives_the_image_back(
    drawn: tuple[TilePlan, int], padding: Any, channels_last: bool
) -> None:
    plan = TilePlan(drawn[0].options.model_copy(update={"padding": padding}), drawn[0].grid)
    image = np.random.default_rng(0).integers(0, 255, (3, plan.grid.height, plan.grid.width)).astype(np.uint8)

    def read(top: int, left: int, height: int, width: int) -> np.ndarray:
        part = image[:, top : top + height, left : left + width]
        return part.transpose(1, 2, 0) if channels_last else part

    def call(batch: np.ndarray) -> np.ndarray:
        assert len(batch) <= 4
        return (batch.transpose(0, 3, 1, 2) if channels_last else batch).astype(np.float32)

    pixels = tiles(plan, read, (0, 1) if channels_last else (1, 2))
    np.testing.assert_allclose(merged(plan, answers(pixels, call, 4)), image, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_small_image_lies_in_the_middle_of_a_padded_tile(padding: Any) -> None:
    image = np.arange(15, dtype=np.float32).reshape(1, 3, 5)
    plan = TilePlan.of(TiledInference(height=8, width=12, multiple_of=1, padding=padding, pad_value=7), 3, 5)

    (tile,) = tiles(plan, reader(image), (1, 2))

    np.testing.assert_array_equal(tile, np.pad(image, ((0, 0), (2, 3), (3, 4)), **PADDINGS[padding]))
    np.testing.assert_array_equal(merged(plan, [tile]), image)


def test_a_small_image_is_put_where_the_networks_stride_divides() -> None:
    plan = TilePlan.of(TiledInference(height=64, width=64, multiple_of=16), 16, 40)

    assert plan.grid == TileGrid(16, 40, (Span(0, 16, 16, 0, 16),), (Span(0, 0, 40, 0, 40),))


def test_the_last_tiles_reach_beyond_the_image_where_multiples_ask_for_it() -> None:
    plan = TilePlan.of(TiledInference(height=64, width=64, overlap=16, multiple_of=32), 100, 128)
    image = np.random.default_rng(0).normal(size=(1, 100, 128)).astype(np.float32)

    found = list(tiles(plan, reader(image), (1, 2)))

    assert [span.start for span in plan.grid.rows] == [0, 32, 64]
    assert [span.start for span in plan.grid.columns] == [0, 32, 64]
    np.testing.assert_array_equal(found[-1], np.pad(image[:, 64:, 64:], ((0, 0), (0, 28), (0, 0)), "reflect"))


def test_one_channel_is_the_logit_of_the_second_class() -> None:
    plan = TilePlan.of(TiledInference(height=8, width=8, overlap=0.5, multiple_of=1), 20, 30)
    logits = some_logits(plan, 1, 1)

    labels = np.concatenate(list(stream(plan, logits)))

    np.testing.assert_array_equal(labels, weighted_sums(plan, logits)[0][0] > 0)


def test_more_than_256_classes_have_16_bits() -> None:
    plan = TilePlan.of(TiledInference(height=4, width=4, overlap=1, multiple_of=1), 6, 5)
    logits = some_logits(plan, 1, 300)

    labels = np.concatenate(list(stream(plan, logits)))

    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, weighted_sums(plan, logits)[0].argmax(0))


def test_tiles_may_be_read_only_and_strided() -> None:
    plan = TilePlan.of(TiledInference(height=8, width=8, overlap=0.5, multiple_of=1), 20, 30)
    logits = some_logits(plan, 1, 3)
    awkward = [np.repeat(tile, 2, axis=2)[..., ::2] for tile in logits]
    for tile in awkward:
        tile.setflags(write=False)

    np.testing.assert_array_equal(merged(plan, awkward), merged(plan, logits))


def test_nan_stays_within_the_tiles_that_have_it() -> None:
    plan = TilePlan.of(TiledInference(height=8, width=8, overlap=0, multiple_of=1), 8, 24)
    logits = some_logits(plan, 1, 2)
    logits[1][:] = np.nan

    found = merged(plan, logits)

    assert np.isnan(found[:, :, 8:16]).all()
    assert np.isfinite(found[:, :, :8]).all()
    assert np.isfinite(found[:, :, 16:]).all()


def test_a_label_map_of_any_height_takes_the_memory_of_one_row_of_tiles() -> None:
    options = TiledInference(height=64, width=64, overlap=16, multiple_of=16)
    classes, width = 4, 2048

    def peak_bytes(height: int) -> int:
        plan = TilePlan.of(options, height, width)
        tile = np.random.default_rng(0).normal(size=(classes, 64, 64)).astype(np.float32)
        list(stream(TilePlan.of(options, 64, 64), [tile]))  # what is compiled or cached once does not count
        tracemalloc.start()
        rows = sum(len(labels) for labels in stream(plan, (tile for _ in plan.grid)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert rows == height
        return peak

    one_row = classes * 64 * width * 4
    low, high = peak_bytes(256), peak_bytes(4096)

    assert high < one_row + 1_000_000 < 2 * one_row
    assert high < low * 1.25  # sixteen times the pixels; only the plan has more rows


def test_rows_come_as_soon_as_no_tile_to_come_has_a_part_in_them() -> None:
    plan = TilePlan.of(TiledInference(height=32, width=32, overlap=16, multiple_of=16), 96, 64)
    asked = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal asked
        for tile in some_logits(plan, 1, 2):
            asked += 1
            yield tile

    seen = [(asked, len(labels)) for labels in stream(plan, counted())]

    assert [rows for _, rows in seen][:3] == [16, 16, 16]
    assert seen[0][0] == len(plan.grid.columns)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 24, 64), "a tile of height 64"),
        ((2, 1, 64), "multipleOf is 32"),
        ((2, 4, 64), "has height 104"),
        ((64, 64), "classes, height, width"),
    ],
)
def test_logits_that_do_not_fit_the_tiles_are_refused(shape: tuple[int, ...], message: str) -> None:
    plan = TilePlan.of(TiledInference(height=64, width=64, multiple_of=32), 104, 128)

    with pytest.raises(PipelineError, match=message):
        merged(plan, [np.zeros(shape, np.float32)] * len(plan.grid))


def test_kernels_refuse_arrays_that_do_not_belong_together() -> None:
    window, span = TileWeights.of("gaussian", 4, 4), Span(0, 0, 4, 0, 4)
    sums, tile = np.zeros((2, 4, 8), np.float32), np.zeros((2, 4, 4), np.float32)

    with pytest.raises(ValueError, match="a tile has shape"):
        add_tile(sums, tile[:1], window, span, span)
    with pytest.raises(ValueError, match="do not fit"):
        add_tile(sums, tile, window, span, Span(6, 0, 4, 0, 4))
    with pytest.raises(ValueError, match="do not fit"):
        add_tile(sums, tile, window, Span(0, 1, 4, 0, 4), span)
    with pytest.raises(ValueError, match="cannot be divided"):
        divide_rows(sums, np.ones((1, 4, 4), np.float32), 0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 64}, "whole pixels below 64"),
        ({"overlap": 1.5}, "whole pixels below 64"),
        ({"multiple_of": 96}, "multipleOf is 96"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TiledInference(**{"height": 64, "width": 128} | options)
