"""Two networks as one model: what is checked, what is rendered, and how their answers become one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig

from segserve_builder.errors import PipelineError, UnknownNameError
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.render.tree import Network, Tree, render, with_network_alias
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.postprocess import Postprocess, check_postprocess
from segserve_builder.steps.step_options import PARAMETER, PostOptions, PreOptions
from segserve_builder.values import ResizeTransform

SEMANTIC_IO = NetworkIO(
    TensorSpec("image", "UINT8", (None, 1, None, None)), "NCHW", (TensorSpec("output0", "FP32", (None, 4, None, None)),)
)
INSTANCE_IO = NetworkIO(
    TensorSpec("images", "UINT8", (None, 1, 64, 64)),
    "NCHW",
    (TensorSpec("output0", "FP32", (None, 8, None)), TensorSpec("output1", "FP32", (None, 2, 16, 16))),
)
SECOND = {
    "artifactSha256": "b" * 64,
    "family": "yolo-seg",
    "postprocess": [{"scoreThreshold": {"threshold": 0.5}}, {"nms": {}}, {"cropMasks": {}}],
}
PLAIN: dict[str, Any] = {
    "model": "both",
    "artifactSha256": "a" * 64,
    "family": "semantic-logits",
    "input": {"colour": "GREY"},
    "classes": [
        {"id": 0, "name": "sky"},
        {"id": 1, "name": "car", "thing": True},
        {"id": 2, "name": "road", "thing": False},
        {"id": 3, "name": "person", "thing": True},
    ],
    "preprocess": [{"decode": {}}, {"resize": {"mode": "stretch", "height": 64, "width": 64}}],
    "postprocess": [{"argmax": {}}, {"panopticFusion": {"stuffArea": 0}}],
    "output": {},
    "runtime": {"instances": 2},
    "instances": SECOND,
}


def pipeline(**changes: Any) -> Pipeline:
    return Pipeline.model_validate(PLAIN | changes)


def rendered(io: NetworkIO = SEMANTIC_IO, second: NetworkIO = INSTANCE_IO, **changes: Any) -> Tree:
    return render(pipeline(**changes), Network(io, Path("/cache/first")), Network(second, Path("/cache/second")))


def parsed(files: Any) -> ModelConfig:
    return text_format.Parse(files["config.pbtxt"].decode(), ModelConfig())


def test_the_task_is_that_of_the_fused_answer() -> None:
    assert check_postprocess(pipeline()) == "panoptic"


def test_the_second_network_knows_the_things_by_their_order() -> None:
    second = pipeline().second
    assert second is not None

    assert [(item.id, item.name) for item in second.classes] == [(0, "car"), (1, "person")]
    assert second.runtime.instances == 2


def test_a_second_network_of_a_family_with_its_own_labels_knows_the_things_by_their_ids() -> None:
    second = pipeline(instances=SECOND | {"family": "mask-rcnn", "postprocess": []}).second
    assert second is not None

    assert [(item.id, item.name) for item in second.classes] == [(1, "car"), (3, "person")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"instances": None}, "'panopticFusion' needs a second network: `instances` is missing"),
        ({"postprocess": [{"argmax": {}}]}, "no postprocess stage uses .*; these do: panopticFusion"),
        ({"classes": [{"id": i, "name": str(i)} for i in range(4)]}, "no class has `thing: true`"),
        (
            {"instances": SECOND | {"postprocess": [{"nms": {}}, {"argmax": {}}]}},
            r"instances: postprocess\[1\] 'argmax' takes logits",
        ),
        (
            {"instances": {"artifactSha256": "b" * 64, "family": "semantic-logits"}},
            "an answer of task semantic; they must give instances",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PipelineError, match=says):
        check_postprocess(pipeline(**changes))


def test_an_unknown_family_of_the_second_network_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown family 'sam'"):
        rendered(instances=SECOND | {"family": "sam"})


@pytest.mark.parametrize(
    "changes",
    [
        {"artifactSha256": "c" * 64},
        {"postprocess": [{"scoreThreshold": {"threshold": 0.6}}, {"nms": {}}, {"cropMasks": {}}]},
        {"runtime": {"instances": 3}},
    ],
)
def test_whatever_changes_of_the_second_network_changes_the_revision(changes: dict[str, Any]) -> None:
    assert pipeline(instances=SECOND | changes).revision != pipeline().revision


def test_default_stages_of_the_second_network_are_the_same_as_written_ones() -> None:
    plain = {key: value for key, value in SECOND.items() if key != "postprocess"}
    written = [{"scoreThreshold": {}}, {"nms": {}}, {"cropMasks": {}}]

    assert pipeline(instances=plain).revision == pipeline(instances=plain | {"postprocess": written}).revision


def test_both_networks_run_beside_each_other() -> None:
    tree = rendered()
    (ensemble,) = tree.public.values()
    steps = parsed(ensemble).ensemble_scheduling.step
    pre, first, second, post = (dict(step.input_map) for step in steps)

    assert [step.model_name.split("--")[1] for step in steps] == ["pre", "net", "net", "post"]
    assert {step.model_name for step in steps} == set(tree.steps)
    assert tree.networks == (steps[1].model_name, steps[2].model_name)
    assert (first, second) == ({"image": "NETWORK_INPUT"}, {"images": "NETWORK_INPUT"})
    made = [dict(step.output_map) for step in steps]
    assert made[1] == {"output0": "NETWORK_OUTPUT_output0"}
    assert made[2] == {"output0": "SECOND_OUTPUT_output0", "output1": "SECOND_OUTPUT_output1"}
    # Overlays are drawn on IMAGE.
    assert set(post) == {"IMAGE", *(tensor for outputs in made[:3] for tensor in outputs.values())} - {"NETWORK_INPUT"}
    assert {tensor.name for tensor in parsed(tree.steps[steps[3].model_name]).input} == set(post)
    assert set(pre) == {"IMAGE", "PIXELS"}


def test_each_step_has_its_own_file_and_runs_as_often_as_its_network_says() -> None:
    tree = rendered(instances=SECOND | {"runtime": {"instances": 3}})

    first, second = (tree.steps[name] for name in tree.networks)
    assert (first["1/model.onnx"], second["1/model.onnx"]) == (Path("/cache/first"), Path("/cache/second"))
    assert [parsed(files).instance_group[0].count for files in (first, second)] == [2, 3]


def test_the_bare_network_is_the_first_one() -> None:
    tree = with_network_alias(rendered(), pipeline(), SEMANTIC_IO)

    alias = parsed(tree.public["both.network"])
    assert [step.model_name for step in alias.ensemble_scheduling.step] == [tree.networks[0]]


def test_sizes_that_only_the_second_network_fixes_are_those_of_the_input() -> None:
    tree = rendered(preprocess=[])

    options = PreOptions.model_validate_json(
        parsed(tree.steps[next(iter(tree.steps))]).parameters[PARAMETER].string_value
    )
    assert options.network_input.shape == (None, 1, 64, 64)


@pytest.mark.parametrize(
    "image",
    [
        TensorSpec("images", "FP32", (None, 1, 64, 64)),
        TensorSpec("images", "UINT8", (None, 3, 64, 64)),
        TensorSpec("images", "UINT8", (1, 64, 64)),
    ],
)
def test_networks_that_cannot_take_the_same_input_are_refused(image: TensorSpec) -> None:
    with pytest.raises(PipelineError, match="the two networks' inputs are"):
        rendered(second=replace(INSTANCE_IO, input=image))


def test_one_of_another_size_than_the_stages_give_is_refused() -> None:
    with pytest.raises(PipelineError, match="is 32 x 32; resize gives 64 x 64"):
        rendered(second=replace(INSTANCE_IO, input=TensorSpec("images", "UINT8", (None, 1, 32, 32))))


def logits() -> NDArray[np.float32]:
    """Sky above, road below, a car on the left, which the first network takes for road and person."""
    values = np.zeros((1, 4, 16, 16), np.float32)
    values[0, 0, :8] = values[0, 2, 8:] = 5
    values[0, 3, 6:10, 4:6] = 9
    return values


def detections() -> dict[str, NDArray[np.float32]]:
    """A car, the same again with a smaller score, and a person too unsure to be kept, all as their boxes."""
    head = np.zeros((1, 8, 3), np.float32)
    head[0, :4] = np.array([[12, 32, 16, 16], [12, 32, 16, 15], [50, 50, 8, 8]], np.float32).T
    head[0, 4:6] = np.array([[0.9, 0.1], [0.8, 0.1], [0.1, 0.3]], np.float32).T
    head[0, 6] = 1
    return {"output0": head, "output1": np.ones((1, 2, 16, 16), np.float32)}


def test_the_answer_is_the_instances_over_the_label_map() -> None:
    post = Postprocess(pipeline(), SEMANTIC_IO, INSTANCE_IO)

    answer = post(
        {"output0": logits()}, ResizeTransform(64, 64, 0, 0, 64, 64, 64, 64), RequestOptions(encoding="raw"),
        frozenset({"LABELS", "SEGMENTS"}), second=detections(),
    )  # fmt: skip

    segments = json.loads(answer["SEGMENTS"][0])
    assert [(s["id"], s["class"], s["isThing"]) for s in segments] == [(1, 1, True), (2, 0, False), (3, 2, False)]
    assert segments[0]["score"] == pytest.approx(0.9)
    assert segments[0]["box"] == [4, 24, 20, 40]
    ids = np.frombuffer(answer["LABELS"][0], np.uint8).reshape(64, 64)
    assert (ids[24:40, 4:20] == 1).all()
    assert set(np.unique(ids[:20])) == {2}
    assert set(np.unique(ids[44:])) == {3}


def test_what_the_last_step_is_told_is_what_it_reads() -> None:
    options = PostOptions.of(pipeline(), SEMANTIC_IO, INSTANCE_IO)

    assert PostOptions.model_validate_json(options.to_parameter()) == options
