"""Views and tiles of an image, run by the network's step, against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fakes.pipelines import pipeline_of
from segserve_builder.errors import PipelineError
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.stages.tile import TiledInference
from segserve_builder.stages.tta import Tta
from segserve_builder.steps.inference import run, with_inference
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.tiling import TilePlan, answers, merged, tiles
from segserve_builder.steps.views import views

if TYPE_CHECKING:
    import torch

FLIPS: dict[str, tuple[int, ...]] = {"horizontal": (3,), "vertical": (2,), "both": (2, 3)}


class Network:
    """A small network whose answer depends on where things lie; its logits are `stride` times smaller."""

    def __init__(self, channels: int = 2, classes: int = 3, stride: int = 1) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self._weight = torch.randn(classes, channels, 2 * stride + 1, 2 * stride + 1, generator=generator)
        self._stride = stride
        self.batches: list[tuple[int, ...]] = []

    def torch(self, images: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        return functional.conv2d(images.float(), self._weight, stride=self._stride, padding=self._stride) / 9

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        import torch

        self.batches.append(batch.shape)
        return self.torch(torch.from_numpy(np.ascontiguousarray(batch))).numpy()


def by_torch(image: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor], options: Tta) -> torch.Tensor:
    """The definition of tta: every different view by itself, turned back, resampled, averaged."""
    import torch
    from torch.nn import functional

    seen: dict[bytes, torch.Tensor] = {}
    reference = network(image)
    marks = torch.arange(6.0).reshape(1, 1, 2, 3)
    for scale in (1.0, *options.scales):
        scaled = image
        if scale != 1:
            size = [max(1, round(side * scale / options.multiple_of)) * options.multiple_of for side in image.shape[2:]]
            scaled = functional.interpolate(image.double(), size, mode="bilinear", align_corners=False).float()
            scaled = scaled if image.is_floating_point() else scaled.round()
        for axes in ((), *(FLIPS[flip] for flip in options.flips)):
            for turns in (0, *(degrees // 90 for degrees in options.rotations)):
                key = torch.rot90(marks.flip(axes), turns, (2, 3))
                name = repr((scale, key.tolist())).encode()
                logits = torch.rot90(network(torch.rot90(scaled.flip(axes), turns, (2, 3))), -turns, (2, 3)).flip(axes)
                if logits.shape != reference.shape:
                    logits = functional.interpolate(logits, reference.shape[2:], mode="bilinear", align_corners=False)
                seen.setdefault(name, logits)
    stacked = torch.stack(list(seen.values()))
    if options.merge == "logits":
        return stacked.mean(0)
    if options.merge == "softmax" and stacked.shape[2] > 1:
        return stacked.softmax(2).mean(0).log()
    mean = stacked.sigmoid().mean(0)
    return mean.log() - (1 - mean).log()


TTAS = st.builds(
    Tta,
    flips=st.lists(st.sampled_from(["horizontal", "vertical", "both"]), min_size=1, max_size=3).map(tuple),
    rotations=st.lists(st.sampled_from([90, 180, 270]), max_size=3).map(tuple),
    scales=st.lists(st.sampled_from([0.5, 0.7, 1.0, 1.5, 2.0]), max_size=2).map(tuple),
    multiple_of=st.sampled_from([4, 8]),
    merge=st.sampled_from(["logits", "softmax", "sigmoid"]),
)


@settings(max_examples=60, deadline=None)
@given(TTAS, st.sampled_from([1, 4]), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9))
def test_views_are_merged_as_plain_torch_merges_them(
    options: Tta, stride: int, classes: int, height: int, width: int, most: int
) -> None:
    import torch

    network = Network(classes=classes, stride=stride)
    image = np.random.default_rng(0).normal(size=(1, 2, 8 * height, 8 * width)).astype(np.float32)

    found = run(image, "NCHW", network, [options], most)

    assert all(shape[0] <= most for shape in network.batches)
    assert sum(shape[0] for shape in network.batches) == len(views(options))
    np.testing.assert_allclose(found, by_torch(torch.from_numpy(image), network.torch, options), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_either_layout_and_type_of_image_gives_the_same(dtype: type, layout: Literal["NCHW", "NHWC"]) -> None:
    import torch

    image = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 48)).astype(dtype)
    network = Network(channels=3)
    options = Tta(flips=("horizontal",), rotations=(90,), scales=(0.5,), multiple_of=8)
    steps = [options, TiledInference(height=16, width=16, multiple_of=8)]

    def call(batch: np.ndarray) -> np.ndarray:
        assert batch.dtype == dtype
        return network(batch if layout == "NCHW" else batch.transpose(0, 3, 1, 2))

    given = image if layout == "NCHW" else np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    views_alone = run(given, layout, call, steps[:1], 4)

    np.testing.assert_allclose(
        views_alone, by_torch(torch.from_numpy(image), network.torch, options), rtol=1e-3, atol=0.02
    )
    np.testing.assert_array_equal(run(given, layout, call, steps, 4), run(image, "NCHW", network, steps, 4))


def test_tiles_lie_inside_views() -> None:
    import torch

    network = Network()
    image = np.random.default_rng(0).normal(size=(1, 2, 40, 56)).astype(np.float32)
    tile, tta = (
        TiledInference(height=16, width=24, overlap=0.5, multiple_of=4),
        Tta(flips=("horizontal",), rotations=(90,)),
    )

    def over_tiles(view: torch.Tensor) -> torch.Tensor:
        pixels = view[0].numpy()
        plan = TilePlan.of(tile, *pixels.shape[1:])
        read = lambda top, left, height, width: pixels[:, top : top + height, left : left + width]  # noqa: E731
        return torch.from_numpy(merged(plan, answers(tiles(plan, read, (1, 2)), network, 3)))[None]

    found = run(image, "NCHW", network, [tta, tile], 3)

    np.testing.assert_allclose(found, by_torch(torch.from_numpy(image), over_tiles, tta), rtol=1e-5, atol=1e-5)
    assert {shape[1:] for shape in network.batches} == {(2, 16, 24)}
    assert max(shape[0] for shape in network.batches) == 3


def test_every_image_of_a_batch_is_answered_by_itself() -> None:
    network = Network()
    batch = np.random.default_rng(0).normal(size=(3, 2, 24, 24)).astype(np.float32)
    steps = [TiledInference(height=16, width=16, multiple_of=4)]

    alone = [run(image[None], "NCHW", network, steps, 8) for image in batch]

    np.testing.assert_array_equal(run(batch, "NCHW", network, steps, 8), np.concatenate(alone))


def test_views_leave_the_image_and_the_networks_answer_alone() -> None:
    image = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    before = image.copy()
    said: list[tuple[np.ndarray, np.ndarray]] = []

    def call(batch: np.ndarray) -> np.ndarray:
        answer = batch.copy()
        said.append((answer, answer.copy()))
        answer.setflags(write=False)
        return answer

    run(image, "NCHW", call, [Tta(flips=("both",))], 1)

    np.testing.assert_array_equal(image, before)
    assert all((answer == copy).all() for answer, copy in said)


def test_probabilities_of_0_and_1_have_finite_logits() -> None:
    image = np.array([[[[1000, -1000]], [[-1000, 1000]]]], np.float32)

    for merge in ("softmax", "sigmoid"):
        found = run(image, "NCHW", lambda batch: batch, [Tta(flips=("vertical",), merge=merge)], 8)

        assert np.isfinite(found).all()
        assert found.argmax(1).tolist() == [[[0, 1]]]


def test_combinations_that_are_the_same_view_count_once() -> None:
    everything = Tta(flips=("horizontal", "vertical", "both"), rotations=(90, 180, 270), scales=(1.0, 0.5))

    assert len(views(everything)) == 16
    assert views(everything)[0] == views(Tta(flips=("both",)))[0]
    assert len(views(Tta(flips=("both",), rotations=(180,)))) == 2


def test_tta_needs_a_view() -> None:
    with pytest.raises(ValidationError, match="has no views"):
        Tta()


def pipeline(*inference: dict[str, Any], family: str = "semantic-logits") -> Pipeline:
    return pipeline_of(family, inference=inference)


def tensors(height: int | None, width: int | None, *, batched: bool = True) -> NetworkIO:
    outputs = (TensorSpec("y", "FP32", (None, 2, height, width)),)
    return NetworkIO(TensorSpec("x", "FP32", (None, 3, height, width)), "NCHW", outputs, batched)


TILE = {"tile": {"height": 64, "width": 96}}
FLIP = {"tta": {"flips": ["horizontal"]}}
TURN = {"tta": {"rotations": [90]}}


def test_a_network_of_one_size_takes_images_of_any_in_tiles() -> None:
    step = with_inference(pipeline(TURN, TILE), tensors(64, 96))

    assert step.input.shape == (None, 3, None, None)
    assert step.outputs[0].shape == (None, 2, None, None)


@pytest.mark.parametrize("steps", [(), (FLIP,), (TURN,)])
def test_without_tiles_the_tensors_are_the_networks(steps: tuple[dict[str, Any], ...]) -> None:
    assert with_inference(pipeline(*steps), tensors(64, 64)) == tensors(64, 64)


@pytest.mark.parametrize(
    ("made", "given", "message"),
    [
        (pipeline(FLIP, family="yolo-seg"), tensors(None, None), "family 'yolo-seg' gives prototypes"),
        (pipeline(TILE, FLIP), tensors(None, None), "tta and then tile; got tile, tta"),
        (pipeline(TILE, TILE), tensors(None, None), "got tile, tile"),
        (pipeline(TILE), tensors(64, 64), "64 x 64 pixels; tiles are 64 x 96"),
        (pipeline(TURN), tensors(64, 96), "rotated views need a square one"),
        (pipeline({"tta": {"scales": [0.5]}}), tensors(64, 64), "scaled views need one of any size"),
        (pipeline(FLIP), tensors(None, None, batched=False), "outputs have a batch"),
    ],
)
def test_steps_that_do_not_fit_are_refused(made: Pipeline, given: NetworkIO, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        with_inference(made, given)
