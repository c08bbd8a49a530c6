"""What stages make of logits: labels and their statistics, masks that may overlap, honest probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fakes.pipelines import pipeline_of
from segserve_builder.errors import PipelineError, SignatureError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkSignature, TensorSpec
from segserve_builder.imaging.probabilities import class_statistics, mean_confidence
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.calibrate import Calibrate
from segserve_builder.stages.multi_label import MultiLabel
from segserve_builder.stages.remove_small_regions import RemoveSmallRegions
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.values import Candidates, LabelMap, Logits, NoHeads, ResizeTransform

if TYPE_CHECKING:
    from oracles.one_thread import torch

SEEDS = st.integers(0, 2**32 - 1)


def logits(channels: int, h: int, w: int, size: tuple[int, int], seed: int = 0) -> Logits:
    values = np.random.default_rng(seed).normal(size=(channels, h, w)) * 2
    return Logits(values.astype(np.float32), ResizeTransform.of(*size))


def upsampled(value: Logits, aligned: bool) -> torch.Tensor:
    from oracles.one_thread import functional, torch

    size = (value.transform.height, value.transform.width)
    stacked = torch.from_numpy(value.values)[None]
    return functional.interpolate(stacked, size, mode="bilinear", align_corners=aligned)[0]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("channels", [2, 5, 300])
def test_labels_areas_and_confidence_are_those_of_torch(channels: int, aligned: bool) -> None:
    from oracles.one_thread import torch

    value = replace(logits(channels, 9, 12, (70, 101)), temperature=1.8)

    found = Argmax(align_corners=aligned)(value, RequestOptions())
    areas, confidence = class_statistics(found, channels)

    likely, labels = torch.softmax(upsampled(value, aligned).double() / 1.8, 0).max(0)
    assert np.array_equal(found.labels, labels.numpy())
    counted = np.bincount(labels.numpy().ravel(), minlength=channels)
    summed = np.bincount(labels.numpy().ravel(), likely.numpy().ravel(), minlength=channels)
    assert areas.tolist() == counted.tolist()
    assert confidence == pytest.approx(summed / np.maximum(counted, 1), abs=1e-5)
    assert mean_confidence(found, channels) == pytest.approx(confidence)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_one_channel_is_compared_as_a_probability_after_calibration(temperature: float) -> None:
    from oracles.one_thread import torch

    value = replace(logits(1, 6, 6, (30, 30)), temperature=temperature)

    found = Argmax(threshold=0.7)(value, RequestOptions())

    likely = torch.sigmoid(upsampled(value, aligned=False)[0].double() / temperature).numpy()
    assert np.array_equal(found.labels, likely > 0.7)
    _, confidence = class_statistics(found, 2)
    expected = [(1 - likely[likely <= 0.7]).mean(), likely[likely > 0.7].mean()]
    assert confidence == pytest.approx(expected, abs=1e-5)


def test_statistics_are_those_of_the_labels_that_are_left() -> None:
    from oracles.one_thread import torch

    value = logits(3, 12, 12, (60, 60))
    cleaned = RemoveSmallRegions(min_area=200)(Argmax()(value, RequestOptions()), RequestOptions())

    areas, confidence = class_statistics(cleaned, 3)

    likely = torch.softmax(upsampled(value, aligned=False).double(), 0).numpy()
    own = np.take_along_axis(likely, cleaned.labels[None].astype(int), axis=0)[0]
    assert areas.tolist() == [int((cleaned.labels == c).sum()) for c in range(3)]
    assert confidence == pytest.approx(
        [own[cleaned.labels == c].mean() if (cleaned.labels == c).any() else 0 for c in range(3)], abs=1e-5
    )


def test_a_class_without_pixels_has_no_confidence() -> None:
    value = LabelMap(np.zeros((4, 4), np.uint8), logits(3, 2, 2, (4, 4)))

    areas, confidence = class_statistics(value, 3)

    assert areas.tolist() == [16, 0, 0]
    assert confidence[1:].tolist() == [0, 0]
    assert (areas.dtype, confidence.dtype) == (np.int64, np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.integers(1, 60), st.integers(1, 60), st.booleans(),
    st.sampled_from([0.5, 1.0, 2.0]), SEEDS,
)  # fmt: skip
def test_multi_label_masks_are_those_of_sigmoid_but_for_float_ties(
    channels: int, h: int, w: int, height: int, width: int, aligned: bool, temperature: float, seed: int
) -> None:
    from oracles.one_thread import torch

    value = replace(logits(channels, h, w, (height, width), seed), temperature=temperature)
    thresholds = np.random.default_rng(seed).uniform(0.1, 0.9, channels)

    found = MultiLabel(thresholds=tuple(thresholds), align_corners=aligned)(value, RequestOptions())

    likely = torch.sigmoid(upsampled(value, aligned).double() / temperature).numpy()
    masks = np.array([decode_bitmap(counts, height, width) for counts in found.masks]) > 0
    wrong = masks != (likely > thresholds[:, None, None])
    assert np.abs(likely - thresholds[:, None, None])[wrong].max(initial=0) < 1e-5
    assert found.areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    assert found.confidence == pytest.approx(
        [p[m].mean() if m.any() else 0 for p, m in zip(likely, masks, strict=True)], abs=1e-5
    )
    assert (found.height, found.width) == (height, width)


def test_one_threshold_is_for_all_classes() -> None:
    value = logits(4, 8, 8, (40, 40))

    assert (
        MultiLabel(threshold=0.8)(value, RequestOptions()).masks
        == MultiLabel(thresholds=(0.8,) * 4)(value, RequestOptions()).masks
    )


def test_a_wrong_number_of_thresholds_is_refused() -> None:
    with pytest.raises(PipelineError, match="multiLabel has 2 thresholds; the network has 4 channels"):
        MultiLabel(thresholds=(0.5, 0.5))(logits(4, 8, 8, (40, 40)), RequestOptions())


def test_calibrating_logits_keeps_them_and_multiplies_temperatures() -> None:
    value = logits(3, 4, 4, (16, 16))

    once = Calibrate(temperature=2)(value, RequestOptions())
    twice = Calibrate(temperature=1.5)(once, RequestOptions())

    assert isinstance(twice, Logits)
    assert twice.temperature == 3
    assert twice.values is value.values
    assert np.array_equal(Argmax()(twice, RequestOptions()).labels, Argmax()(value, RequestOptions()).labels)


def test_calibrated_scores_keep_their_order_and_their_boxes() -> None:
    scores = np.array([0.9, 0.5, 0.1, 1, 0], np.float32)
    boxes = np.arange(20, dtype=np.float32).reshape(5, 4)
    value = Candidates(boxes, scores, np.arange(5, dtype=np.int32), NoHeads(), ResizeTransform.of(8, 8))

    softer = Calibrate(temperature=2)(value, RequestOptions())

    assert isinstance(softer, Candidates)
    assert softer.scores == pytest.approx([0.75, 0.5, 0.25, 1, 0])
    assert softer.boxes is boxes
    assert scores.tolist() == pytest.approx([0.9, 0.5, 0.1, 1, 0])


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        (Calibrate, {}),
        (Calibrate, {"temperature": 0}),
        (Calibrate, {"temperature": float("nan")}),
        (MultiLabel, {"threshold": 1}),
        (MultiLabel, {"thresholds": [0.5, 0]}),
        (Argmax, {"alignCorners": "both"}),
    ],
)
def test_options_outside_their_range_are_refused(stage: type, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        stage.model_validate(options)


def pipeline(classes: int, *stages: dict[str, Any]) -> Pipeline:
    return pipeline_of(classes=classes, input={"colour": "GREY"}, postprocess=stages)


@pytest.mark.parametrize(
    ("classes", "channels", "stage", "says"),
    [
        (1, 1, {"multiLabel": {}}, None),
        (3, 3, {"multiLabel": {"thresholds": [0.5, 0.4, 0.3]}}, None),
        (2, 1, {"argmax": {}}, None),
        (2, 1, {"multiLabel": {}}, "for the model's 2 classes the number of channels must be 2$"),
        (3, 3, {"multiLabel": {"thresholds": [0.5, 0.4]}}, "multiLabel has 2 thresholds; the network has 3 channels"),
        (1, 1, {"argmax": {}}, "argmax needs at least two classes"),
    ],
)
def test_multi_label_needs_a_channel_a_class(classes: int, channels: int, stage: dict[str, Any], says: str) -> None:
    image = TensorSpec("image", "UINT8", (None, 1, None, None))
    given = NetworkSignature((image,), (TensorSpec("logits", "FP32", (None, channels, None, None)),))
    read = lambda: FAMILIES["semantic-logits"].network_io(given, pipeline(classes, stage))  # noqa: E731

    if says is None:
        assert len(read().outputs) == 1
    else:
        with pytest.raises((SignatureError, PipelineError), match=says):
            read()
