"""The postprocess step as a whole: which stages fit, what requests may ask, and what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.pipelines import pipeline_of
from segserve_builder.errors import BadImageError, NonFiniteError, PipelineError, UnknownNameError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.spec.model_spec import Output
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.postprocess import (
    TASKS,
    Postprocess,
    check_postprocess,
    postprocess_stages,
    request_from_parameters,
)
from segserve_builder.values import ResizeTransform

INSTANCE = frozenset({"REVISION", "SIZE", "BOXES", "SCORES", "CLASSES", "MASKS"})
TRANSFORM = ResizeTransform(32, 48, 0, 0, 32, 48, 32, 48)


def pipeline(family: str, *stages: dict[str, Any], classes: int = 2, **output: Any) -> Pipeline:
    return pipeline_of(family, classes, input={"colour": "GREY"}, postprocess=stages, output=output)


def step(made: Pipeline) -> Postprocess:
    image = TensorSpec("image", "UINT8", (None, 1, None, None))
    tensors = {
        "semantic-logits": (TensorSpec("logits", "FP32", (None, 1, None, None)),),
        "yolo-seg": (TensorSpec("head", "FP32", (None, 8, None)), TensorSpec("masks", "FP32", (None, 2, None, None))),
    }[made.family]
    return Postprocess(made, NetworkIO(image, "NCHW", tensors))


def yolo_outputs(n: int = 6) -> dict[str, np.ndarray]:
    """n detections side by side, of falling score, whose masks are their whole boxes."""
    head = np.zeros((1, 4 + 2 + 2, n), np.float32)
    head[0, :4] = np.stack([np.arange(n) * 8 + 4, np.full(n, 10), np.full(n, 6), np.full(n, 12)])
    head[0, 4 + np.arange(n) % 2, np.arange(n)] = np.linspace(0.9, 0.4, n)
    head[0, 6] = 1
    return {"head": head, "masks": np.ones((1, 2, 8, 12), np.float32), "auxiliary": np.full(3, np.nan)}


def test_a_label_map_comes_out_of_logits() -> None:
    logits = np.full((1, 1, 32, 48), -1, np.float32)
    logits[0, 0, 4:20, 8:30] = 1
    logits[0, 0, 25, 40:43] = 1
    logits.setflags(write=False)
    post = step(pipeline("semantic-logits", {"argmax": {}}, {"removeSmallRegions": {"minArea": 4}}))

    answer = post({"logits": logits}, TRANSFORM, RequestOptions(encoding="rle"), frozenset({"SIZE", "MASKS", "AREAS"}))

    expected = np.zeros((32, 48), np.uint8)
    expected[4:20, 8:30] = 1
    assert answer["SIZE"].tolist() == [32, 48]
    assert answer["AREAS"].tolist() == [32 * 48 - 16 * 22, 16 * 22]
    assert np.array_equal(decode_bitmap(answer["MASKS"][1], 32, 48), expected)
    assert np.array_equal(decode_bitmap(answer["MASKS"][0], 32, 48), 1 - expected)


def test_outputs_that_are_not_read_stay_empty() -> None:
    logits = np.full((1, 1, 32, 48), 3.0, np.float32)
    wanted = frozenset({"SIZE", "LABELS", "AREAS", "CONFIDENCE"})
    asked = request_from_parameters({"outputs": "LABELS, AREAS"}, Output())

    answer = step(pipeline("semantic-logits"))({"logits": logits}, TRANSFORM, asked, wanted)

    assert answer.keys() == wanted
    assert answer["SIZE"].tolist() == [32, 48]
    assert answer["AREAS"].tolist() == [0, 32 * 48]
    assert len(answer["LABELS"]) == 1
    assert answer["CONFIDENCE"].shape == (0,)


def test_an_output_that_another_revision_may_have_can_be_named() -> None:
    asked = request_from_parameters({"outputs": "AREAS,OUT_OF_DISTRIBUTION,CONTINUED"}, Output())
    logits = np.zeros((1, 1, 32, 48), np.float32)

    answer = step(pipeline("semantic-logits"))({"logits": logits}, TRANSFORM, asked, frozenset({"AREAS"}))

    assert answer.keys() == {"AREAS"}


def test_an_output_that_the_task_does_not_have_cannot_be_read() -> None:
    asked = request_from_parameters({"outputs": "BOXES"}, Output())

    with pytest.raises(BadImageError, match="the model has no output BOXES; its outputs are REVISION, SIZE, LABELS"):
        step(pipeline("semantic-logits"))({"logits": np.zeros((1, 1, 32, 48), np.float32)}, TRANSFORM, asked, INSTANCE)


def test_instances_come_out_of_a_yolo_head() -> None:
    answer = step(pipeline("yolo-seg"))(yolo_outputs(), TRANSFORM, RequestOptions(), INSTANCE)

    assert answer["SCORES"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert answer["CLASSES"].tolist() == [0, 1, 0, 1, 0, 1]
    assert answer["BOXES"][1].tolist() == [9, 4, 15, 16]
    mask = decode_bitmap(answer["MASKS"][1], 32, 48)
    assert (mask.sum(), mask[4:16, 9:15].all()) == (72, True)


def test_no_detections_are_an_answer() -> None:
    answer = step(pipeline("yolo-seg"))(yolo_outputs(), TRANSFORM, RequestOptions(score_threshold=1.0), INSTANCE)

    assert {name: array.shape for name, array in answer.items()} == {
        "SIZE": (2,),
        "BOXES": (0, 4),
        "SCORES": (0,),
        "CLASSES": (0,),
        "MASKS": (0,),
    }


@pytest.mark.parametrize(("model", "asked", "number"), [(300, None, 6), (2, None, 2), (2, 4, 4), (300, 1, 1)])
def test_the_best_instances_are_kept_up_to_the_limit(model: int, asked: int | None, number: int) -> None:
    post = step(pipeline("yolo-seg", {"cropMasks": {}}, max_detections=model))
    outputs = yolo_outputs()
    outputs["head"] = outputs["head"][:, :, ::-1]

    answer = post(outputs, TRANSFORM, RequestOptions(max_detections=asked), INSTANCE)

    best = pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4][:number])
    assert sorted(answer["SCORES"].tolist(), reverse=True) == best
    assert len(answer["MASKS"]) == number


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_an_error(bad: float) -> None:
    outputs = yolo_outputs()
    outputs["masks"][0, 1, 2, 3] = bad

    with pytest.raises(NonFiniteError, match="'masks' has 1 values of 192 that are NaN or infinite"):
        step(pipeline("yolo-seg"))(outputs, TRANSFORM, RequestOptions(), INSTANCE)


def test_finite_outputs_whose_sum_overflows_are_no_error() -> None:
    logits = np.full((1, 1, 4, 4), 3e38, np.float32)

    answer = step(pipeline("semantic-logits"))(
        {"logits": logits}, ResizeTransform.of(4, 4), RequestOptions(), frozenset({"AREAS"})
    )

    assert answer["AREAS"].tolist() == [0, 16]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_stages_of_a_family_lead_to_its_answer(family: str) -> None:
    made = pipeline(family)
    kind = FAMILIES[family].gives
    for stage in postprocess_stages(made):
        assert kind in stage.takes
        kind = stage.gives or kind

    assert check_postprocess(made) == TASKS[kind]


@pytest.mark.parametrize(
    ("family", "stages", "says"),
    [
        (
            "semantic-logits",
            [{"nms": {}}],
            r"postprocess\[0\] 'nms' takes boxes or heatmaps or maskHeads or points or prototypes or rotated; family",
        ),
        (
            "semantic-logits",
            [{"argmax": {}}, {"argmax": {}}],
            r"postprocess\[1\] 'argmax' takes logits; postprocess\[0\] 'argmax' gives labels",
        ),
        (
            "yolo-seg",
            [{"scoreThreshold": {}}, {"morphology": {"operation": "open"}}],
            r"\[1\] 'morphology' takes instances or labels; postprocess\[0\] 'scoreThreshold' gives prototypes",
        ),
        (
            "yolo-seg",
            [{"scoreThreshold": {}}, {"nms": {}}],
            r"postprocess\[1\] 'nms' gives prototypes; the last stage must give labels, classMasks, instances",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused(family: str, stages: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(PipelineError, match=says):
        check_postprocess(pipeline(family, *stages))


def test_class_ids_that_are_not_channels_are_refused() -> None:
    made = pipeline("semantic-logits")
    made = made.model_copy(update={"classes": made.classes[::-1]})

    with pytest.raises(PipelineError, match="ids 1, 0; they must count up from 0"):
        check_postprocess(made)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown family 'mask-rcm'; known: deformable-detr, .*, yolov5-seg"):
        check_postprocess(pipeline("mask-rcm"))


@pytest.mark.parametrize(
    ("parameters", "request_"),
    [
        ({}, RequestOptions()),
        ({"score_threshold": "0.25", "max_detections": "7"}, RequestOptions(score_threshold=0.25, max_detections=7)),
        ({"score_threshold": 1, "max_detections": 10_000}, RequestOptions(score_threshold=1, max_detections=10_000)),
        ({"encoding": "raw"}, RequestOptions(encoding="raw")),
    ],
)
def test_parameters_are_read_as_numbers_or_as_text(parameters: dict[str, Any], request_: RequestOptions) -> None:
    assert request_from_parameters(parameters, Output()) == request_


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"score_threshold": 1.5}, "'score_threshold' is 1.5; allowed: a number from 0 to 1"),
        ({"score_threshold": "nan"}, "'score_threshold' is 'nan'"),
        ({"score_threshold": True}, "'score_threshold' is True"),
        ({"score_threshold": [0.5]}, "'score_threshold' is"),
        ({"max_detections": 0}, "'max_detections' is 0; allowed: a whole number from 1 to 10000"),
        ({"max_detections": 2.5}, "'max_detections' is 2.5"),
        ({"max_detections": "many"}, "'max_detections' is 'many'"),
        ({"max_detections": 10**400}, "'max_detections' is 1"),
        ({"encoding": "jpeg"}, "'encoding' is 'jpeg'; allowed: rle, polygons, png, raw"),
        ({"encoding": ["rle"]}, "'encoding' is"),
        (
            {"score_treshold": 0.5},
            "'score_treshold' is not allowed; this model allows: score_threshold, max_detections",
        ),
    ],
)
def test_malformed_parameters_are_the_callers_fault(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(BadImageError, match=says):
        request_from_parameters(parameters, Output())


def test_a_callers_label_of_its_image_is_no_option() -> None:
    assert request_from_parameters({"segserve_slice": "camera-7"}, Output()) == RequestOptions()


def test_a_parameter_that_the_model_does_not_let_override_is_refused() -> None:
    output = Output(overrides=("encoding",))

    assert request_from_parameters({"encoding": "rle"}, output).encoding == "rle"
    with pytest.raises(BadImageError, match="'max_detections' is not allowed; this model allows: encoding"):
        request_from_parameters({"max_detections": 3}, output)


@pytest.mark.parametrize("asked", [RequestOptions(score_threshold=0.5), RequestOptions(max_detections=3)])
def test_a_semantic_model_refuses_what_is_for_instances(asked: RequestOptions) -> None:
    logits = {"logits": np.zeros((1, 1, 4, 4), np.float32)}

    with pytest.raises(BadImageError, match="is for models of task detection, instance, keypoints; this one"):
        step(pipeline("semantic-logits"))(logits, ResizeTransform.of(4, 4), asked, frozenset({"SIZE"}))
