"""A light and a heavy network as one model: the rule, what is checked, and what is rendered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from segserve_builder.agent.server import ensemble_of
from segserve_builder.errors import PipelineError, UnknownNameError
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.render.tree import Network, Sharing, Tree, render, with_network_alias
from segserve_builder.steps.cascade import check_cascade, light_score
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.step_options import PARAMETER, PostOptions
from segserve_builder.values import ClassMasks, Instances, KeypointDetections, LabelMap, Logits, ResizeTransform

IO = NetworkIO(
    TensorSpec("image", "UINT8", (None, 1, None, None)), "NCHW", (TensorSpec("logits", "FP32", (None, 3, None, None)),)
)
LIGHT: dict[str, Any] = {
    "artifactSha256": "b" * 64,
    "family": "semantic-logits",
    "preprocess": [{"decode": {}}, {"resize": {"mode": "stretch", "height": 32, "width": 32}}],
    "postprocess": [{"argmax": {}}],
    "runtime": {"instances": 3},
}
CASCADE: dict[str, Any] = {"light": LIGHT, "when": "confidence", "threshold": 0.25}
PLAIN: dict[str, Any] = {
    "model": "tiers",
    "artifactSha256": "a" * 64,
    "family": "semantic-logits",
    "input": {"colour": "GREY"},
    "classes": [{"id": 0, "name": "sky"}, {"id": 1, "name": "car"}, {"id": 2, "name": "road"}],
    "preprocess": [{"decode": {}}, {"resize": {"mode": "stretch", "height": 64, "width": 64}}],
    "postprocess": [{"argmax": {}}],
    "output": {},
    "runtime": {"instances": 2, "maxBatchSize": 4},
    "cascade": CASCADE,
}
BOXES: dict[str, Any] = {"family": "yolo-seg", "postprocess": []}
SQUARE = ResizeTransform(100, 100, 0, 0, 100, 100, 100, 100)


def pipeline(**changes: Any) -> Pipeline:
    return Pipeline.model_validate(PLAIN | changes)


def with_rule(**changes: Any) -> Pipeline:
    return pipeline(cascade=CASCADE | changes)


def rendered(given: Pipeline | None = None) -> Tree:
    return render(given or pipeline(), Network(IO, Path("/cache/heavy")), light=Network(IO, Path("/cache/light")))


def parsed(files: Any) -> ModelConfig:
    return text_format.Parse(files["config.pbtxt"].decode(), ModelConfig())


def masks(*areas: int, confidence: tuple[float, ...]) -> ClassMasks:
    return ClassMasks((b"",) * len(areas), np.array(areas), np.array(confidence, np.float32), 100, 100)


def score(answer: Any, **rule: Any) -> float:
    cascade = with_rule(**rule).cascade
    assert cascade is not None
    return light_score(cascade, answer, pipeline(), SQUARE)


def map_of(*classes: int) -> LabelMap:
    """A map whose 100 columns are of these classes in equal parts, each with the probability 0.9."""
    labels = np.repeat(np.array(classes, np.uint8), 100 // len(classes))[None].repeat(100, axis=0)
    likely = np.log(0.9 / 0.05)
    values = np.zeros((3, 100, 100), np.float32)
    for number in range(3):
        values[number][labels == number] = likely
    return LabelMap(labels, Logits(values, SQUARE))


def test_a_region_too_small_to_have_a_score_goes_to_the_heavy_network() -> None:
    labels = np.zeros((1000, 1000), np.uint8)
    labels[505:520, 505:520] = 1  # between the pixels whose probabilities are looked at
    transform = ResizeTransform(1000, 1000, 0, 0, 1000, 1000, 1000, 1000)
    answer = LabelMap(labels, Logits(np.zeros((3, 1000, 1000), np.float32), transform))

    assert score(answer, when="class", classes=[1]) == 1.0


def test_a_score_of_confidence_is_one_less_the_mean_probability_of_what_was_answered() -> None:
    assert score(map_of(0, 1)) == pytest.approx(0.1, abs=1e-6)


def test_a_score_of_area_is_higher_the_smaller_the_smallest_region_is() -> None:
    rule = {"when": "area"}

    assert score(map_of(0), **rule) == 0.0
    assert score(map_of(0, 1), **rule) == pytest.approx(1 - np.sqrt(0.5))
    assert score(map_of(0, 0, 0, 1), **rule) == pytest.approx(0.5)


def test_a_score_of_area_takes_boxes_where_there_are_no_masks() -> None:
    boxes = np.array([[0, 0, 100, 50], [0, 0, 10, 10]], np.float32)
    found = KeypointDetections(boxes, np.ones(2, np.float32), np.zeros(2, np.int32), np.zeros((2, 0, 3)), 100, 100)

    assert score(found, when="area") == pytest.approx(0.9)


def test_a_score_of_class_is_that_of_its_surest_region() -> None:
    rule = {"when": "class", "classes": [1, 2]}

    assert score(map_of(0), **rule) == 0.0
    assert score(map_of(0, 2), **rule) == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize(("when", "expected"), [("confidence", 1.0), ("area", 1.0), ("class", 0.0)])
def test_an_answer_that_shows_nothing_tells_nothing(when: str, expected: float) -> None:
    nothing = Instances(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), (), 100, 100)

    assert score(nothing, when=when, classes=[1] if when == "class" else []) == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cascade": CASCADE | {"light": LIGHT | BOXES}}, "cascade.light gives answers of task instance; .* semantic"),
        (
            {"cascade": CASCADE | {"light": LIGHT | {"postprocess": [{"nms": {}}]}}},
            r"cascade.light: postprocess\[0\] 'nms' takes",
        ),
        ({"cascade": CASCADE | {"when": "class"}}, "when: class needs classes"),
        ({"cascade": CASCADE | {"classes": [1]}}, "when: confidence takes no classes"),
        ({"cascade": CASCADE | {"when": "class", "classes": [1, 7]}}, r"has \[7\]; the model's classes have the ids"),
        (
            {"outOfDistribution": {"score": "maxSoftmax", "threshold": 0.5}},
            "outOfDistribution judges the answers of one network",
        ),
        (
            {"cascade": CASCADE | {"light": LIGHT | {"preprocess": [{"decode": {"window": [0, 4095]}}]}}},
            r"cascade.light has the window \(0, 4095\) of decode; that of the model is None",
        ),
        (
            {"postprocess": [{"temporalSmoothing": {}}, {"argmax": {}}]},
            "a model with temporalSmoothing has one network",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PipelineError, match=says):
        check_cascade(pipeline(**changes))


def test_an_unknown_family_of_the_light_network_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown family 'sam'"):
        check_cascade(pipeline(cascade=CASCADE | {"light": LIGHT | {"family": "sam"}}))


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0.3},
        {"when": "area"},
        {"maxLoss": 0.01},
        {"light": LIGHT | {"artifactSha256": "c" * 64}},
        {"light": LIGHT | {"postprocess": [{"argmax": {"threshold": 0.4}}]}},
    ],
)
def test_whatever_changes_of_the_cascade_changes_the_revision(changes: dict[str, Any]) -> None:
    assert with_rule(**changes).revision != pipeline().revision


def test_default_stages_of_the_light_network_are_the_same_as_written_ones() -> None:
    plain = {key: value for key, value in LIGHT.items() if key != "postprocess"}

    assert with_rule(light=plain).revision == pipeline().revision


def test_the_public_ensemble_is_the_light_network_whose_last_step_gets_the_image_too() -> None:
    tree = rendered()
    (ensemble,) = tree.public.values()
    steps = parsed(ensemble).ensemble_scheduling.step
    heavy = [step.model_name for step in parsed(tree.steps[tree.heavy or ""]).ensemble_scheduling.step]

    assert [step.model_name.split("--")[1] for step in steps] == ["pre", "net", "post"]
    assert {"IMAGE", "PIXELS"} <= set(steps[2].input_map)
    assert list(tree.steps) == [*heavy, tree.heavy, *(step.model_name for step in steps)]
    files = [tree.steps[name]["1/model.onnx"] for name in tree.networks]
    assert files == [Path("/cache/heavy"), Path("/cache/light")]


def test_the_ensemble_names_all_that_its_requests_may_reach() -> None:
    tree = rendered()
    (ensemble,) = tree.public.values()

    assert ensemble_of(parsed(ensemble)).steps == set(tree.steps)


def test_the_last_light_step_is_told_the_rule_and_whom_to_ask() -> None:
    given = pipeline()
    tree = rendered(given)

    text = parsed(tree.steps[[*tree.steps][-1]]).parameters[PARAMETER].string_value
    options = PostOptions.model_validate_json(text)
    assert options.heavy is not None
    assert (options.heavy.cascade, options.heavy.model) == (given.cascade, tree.heavy)
    assert (options.heavy.max_requests, options.heavy.max_queue_size) == (2 * 2 * 4, 128)
    assert options.revision == given.revision
    assert json.loads(text)["pipeline"]["model"] == "tiers"


def test_both_networks_answers_carry_the_same_revision() -> None:
    given = pipeline()
    tree = rendered(given)

    tagged = {parsed(files).metric_tags["revision"] for name, files in tree.steps.items() if "--post--" in name}
    assert tagged == {given.revision}


def test_a_step_that_both_networks_need_is_there_once() -> None:
    tree = rendered(with_rule(light=LIGHT | {"preprocess": PLAIN["preprocess"]}))

    assert len([name for name in tree.steps if "--pre--" in name]) == 1


def test_a_former_revision_with_a_cascade_has_its_own_steps_also_where_the_spec_now_shares_them() -> None:
    shared = Sharing(post=True, networks=True)

    tree = render(
        pipeline(), Network(IO, Path("/cache/heavy")), sharing=shared, light=Network(IO, Path("/cache/light"))
    )

    assert tree == rendered()


def test_the_bare_network_is_the_heavy_one() -> None:
    tree = with_network_alias(rendered(), pipeline(), IO)

    alias = parsed(tree.public["tiers.network"])
    assert [step.model_name for step in alias.ensemble_scheduling.step] == [tree.networks[0]]
