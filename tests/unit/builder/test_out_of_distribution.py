"""Scores of how unlike a model's usual images an image is, and the threshold that few usual ones exceed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from fakes.pipelines import pipeline_of
from segserve.calls import answers
from segserve_builder.errors import PipelineError
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.spec.model_spec import COUNTED, UNCOUNTED, ModelMetrics
from segserve_builder.spec.names import OPTIONAL_OUTPUTS
from segserve_builder.steps.out_of_distribution import conformal_threshold, score_of
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.postprocess import check_postprocess
from segserve_builder.steps.public_outputs import PUBLIC_OUTPUTS, Task, public_outputs
from segserve_builder.steps.step_options import PostOptions
from segserve_builder.values import (
    ClassMasks,
    ImageStatistics,
    Instances,
    LabelMap,
    Logits,
    Panoptic,
    ResizeTransform,
    Segment,
)

SIDE = 12
WHOLE = ResizeTransform.of(SIDE, SIDE)
IO = NetworkIO(
    TensorSpec("x", "UINT8", (None, 1, None, None)), "NCHW", (TensorSpec("y", "FP32", (None, 1, None, None)),)
)


def label_map(values: NDArray[Any], transform: ResizeTransform = WHOLE, temperature: float = 1.0) -> LabelMap:
    labels = np.zeros((transform.height, transform.width), np.uint8)
    return LabelMap(labels, Logits(values.astype(np.float32), transform, temperature))


def instances(*scores: float) -> Instances:
    number = len(scores)
    return Instances(
        boxes=np.zeros((number, 4), np.float32),
        scores=np.array(scores, np.float32),
        classes=np.zeros(number, np.int32),
        masks=(b"",) * number,
        height=SIDE,
        width=SIDE,
    )


def test_scores_of_label_maps_are_those_of_the_papers() -> None:
    from scipy.special import logsumexp, softmax

    values = np.random.default_rng(0).normal(0, 2, (4, SIDE, SIDE)).astype(np.float32)
    answer = label_map(values, temperature=1.5)

    doubt, energy = (score_of(score, answer, None) for score in ("maxSoftmax", "energy"))

    assert doubt == pytest.approx(1 - softmax(values / 1.5, axis=0).max(0).mean(), rel=1e-5)
    assert energy == pytest.approx(-(1.5 * logsumexp(values / 1.5, axis=0)).mean(), rel=1e-5)


def test_a_single_logit_is_one_of_two_classes() -> None:
    values = np.random.default_rng(0).normal(0, 2, (1, SIDE, SIDE)).astype(np.float32)
    both = np.concatenate([np.zeros_like(values), values])

    assert score_of("maxSoftmax", label_map(values), None) == score_of("maxSoftmax", label_map(both), None)


def test_what_was_padded_tells_nothing() -> None:
    from scipy.special import softmax

    place = ResizeTransform(SIDE, SIDE, 2, 0, 6, SIDE, SIDE, SIDE)
    values = np.full((2, SIDE, SIDE), 0.0, np.float32)
    values[0, 2:8] = 8.0

    assert score_of("maxSoftmax", label_map(values, place), None) == pytest.approx(1 - softmax([8, 0])[0], rel=1e-5)


def test_objects_and_masks_are_scored_by_their_confidence_and_nothing_by_none() -> None:
    masks = ClassMasks((b"", b""), np.array([30, 10]), np.array([0.9, 0.5], np.float32), SIDE, SIDE)
    segments = (Segment(1, 0, True, 0.8), Segment(2, 0, True, 0.6))
    panoptic = Panoptic(np.ones((SIDE, SIDE), np.uint16), segments)

    assert score_of("maxSoftmax", masks, None) == pytest.approx(0.2)
    assert score_of("maxSoftmax", instances(0.9, 0.7), None) == pytest.approx(0.2)
    assert score_of("maxSoftmax", panoptic, None) == pytest.approx(0.3)
    assert score_of("maxSoftmax", instances(), None) is None
    assert score_of("detail", instances(), ImageStatistics(0.5, 0.4, 0.02, 0.5, 0.5)) == 0.02


@pytest.mark.parametrize(("images", "rate"), [(19, 0.05), (40, 0.05), (99, 0.01), (100, 0.01), (7, 0.2)])
def test_of_exchangeable_images_at_most_the_given_share_is_above_the_threshold(images: int, rate: float) -> None:
    scores = np.random.default_rng(0).normal(size=images + 1).tolist()

    # Each of them is as likely as any other to be the one that comes after the rest.
    above = [each > conformal_threshold([*scores[:at], *scores[at + 1 :]], rate) for at, each in enumerate(scores)]

    assert sum(above) <= rate * len(scores)


def test_too_few_images_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(ValueError, match=r"rate of 0\.05 needs at least 19 images with a score, got 18"):
        conformal_threshold(list(range(18)), 0.05)


def pipeline(family: str = "semantic-logits", **policy: Any) -> Pipeline:
    own = {"input": {"colour": "GREY"}, "preprocess": [{"decode": {}}], "outOfDistribution": policy or None}
    return pipeline_of(family, 1, **own)


def test_a_model_that_judges_no_images_has_the_revision_and_the_steps_of_before() -> None:
    plain = pipeline().model_dump(mode="json", by_alias=True, exclude_none=True)

    assert "outOfDistribution" not in plain
    assert "outOfDistribution" not in pipeline().identity()
    assert pipeline(score="energy", threshold=0.0).revision != pipeline().revision


def test_energy_is_refused_where_there_are_no_logits_of_pixels() -> None:
    assert check_postprocess(pipeline(score="energy", threshold=-3.0)) == "semantic"

    with pytest.raises(PipelineError, match=r"energy needs logits of each pixel.*use maxSoftmax or detail"):
        check_postprocess(pipeline("yolo-seg", score="energy", threshold=-3.0))


def test_slices_are_refused_where_answers_are_not_counted() -> None:
    with pytest.raises(ValidationError, match="slices need counts of answers, which answers: false switches off"):
        ModelMetrics(answers=False, slices=("north",))


@pytest.mark.parametrize("task", PUBLIC_OUTPUTS)
def test_outputs_that_revisions_may_lack_are_those_beyond_their_task(task: Task) -> None:
    every = public_outputs(task, streams=True, flags=True, prompts=False)

    assert tuple(tensor.name for tensor in every[len(PUBLIC_OUTPUTS[task]) :]) == ("OVERLAY", *OPTIONAL_OUTPUTS)
    assert answers.OPTIONAL_OUTPUTS == OPTIONAL_OUTPUTS


@pytest.mark.parametrize(
    ("metrics", "score", "measures"),
    [(COUNTED, "energy", True), (UNCOUNTED, "energy", False), (UNCOUNTED, "detail", True)],
)
def test_images_are_measured_for_metrics_and_for_the_score_that_is_of_them(
    metrics: ModelMetrics, score: str, measures: bool
) -> None:
    assert PostOptions.of(pipeline(score=score, threshold=0.0), IO, metrics=metrics).measures == measures
