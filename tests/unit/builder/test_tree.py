"""The tree of one revision: golden configuration files, names, what is shared and what connects."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from segserve_builder.errors import PipelineError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import Family, NetworkIO, TensorSpec
from segserve_builder.render.tree import Network, Tree, render, with_network_alias
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.step_options import PARAMETER, NetOptions, PostOptions, PreOptions

GOLDEN = Path(__file__).parents[2] / "golden" / "pbtxt"
ARTIFACT = Path("/cache/sha256/artifact")

KNOWN_TO_TRITON_2_51 = {
    "name",
    "platform",
    "backend",
    "max_batch_size",
    "input",
    "output",
    "parameters",
    "metric_tags",
    "instance_group",
    "dynamic_batching",
    "ensemble_scheduling",
}


SEMANTIC_IO = NetworkIO(
    TensorSpec("image", "UINT8", (None, 1, None, None)),
    "NCHW",
    (TensorSpec("logits", "FP32", (None, 2, None, None)),),
)
INSTANCE_IO = NetworkIO(
    TensorSpec("images", "UINT8", (None, 384, 384, 3)),
    "NHWC",
    (TensorSpec("output0", "FP32", (None, 38, 3024)), TensorSpec("output1", "FP32", (None, 32, 96, 96))),
)
PLAIN_SEMANTIC = {
    "model": "coins",
    "artifactSha256": "a" * 64,
    "family": "semantic-logits",
    "input": {"colour": "GREY"},
    "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": 'a "quoted" coin', "colour": "#ffcc00"}],
    "preprocess": [{"decode": {}}, {"resize": {"mode": "keep", "multipleOf": 16, "padding": "edge"}}],
    "postprocess": [{"argmax": {}}, {"removeSmallRegions": {"minArea": 150}}],
    "output": {},
    "runtime": {"maxQueueDelayUs": 500, "instances": 2, "intraOpThreads": 1},
}
PLAIN_INSTANCE = PLAIN_SEMANTIC | {
    "model": "parts",
    "family": "yolo-seg",
    "input": {"colour": "RGB"},
    "preprocess": [{"decode": {}}, {"resize": {"mode": "letterbox", "height": 384, "width": 384}}],
    "postprocess": [],
}


def pipeline(plain: dict[str, object] = PLAIN_SEMANTIC, **changes: object) -> Pipeline:
    return Pipeline.model_validate(plain | changes)


def rendered(plain: dict[str, object] = PLAIN_SEMANTIC, **changes: object) -> Tree:
    io = INSTANCE_IO if plain["family"] == "yolo-seg" else SEMANTIC_IO
    return render(pipeline(plain, **changes), Network(io, ARTIFACT))


def parsed(files) -> ModelConfig:
    return text_format.Parse(files["config.pbtxt"].decode(), ModelConfig())


def configs(tree: Tree) -> dict[str, ModelConfig]:
    return {name: parsed(files) for name, files in {**tree.steps, **tree.public}.items()}


@pytest.mark.same
@pytest.mark.parametrize(
    ("task", "plain", "io"),
    [("semantic", PLAIN_SEMANTIC, SEMANTIC_IO), ("instance", PLAIN_INSTANCE, INSTANCE_IO)],
)
def test_rendered_configurations_equal_the_golden_files(task: str, plain, io: NetworkIO) -> None:
    """Write them anew with `make write`, and read the difference before committing it."""
    tree = with_network_alias(rendered(plain), pipeline(plain), io)
    named = dict(zip(("pre", "net", "post", "network", "ensemble"), (*tree.steps, *tree.public), strict=True))
    everything = {**tree.steps, **tree.public}
    for kind, name in named.items():
        path = GOLDEN / task / f"{kind}.pbtxt"
        if os.environ.get("SEGSERVE_WRITE_GOLDEN"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(everything[name]["config.pbtxt"])
        assert everything[name]["config.pbtxt"] == path.read_bytes(), path


@pytest.mark.parametrize("plain", [PLAIN_SEMANTIC, PLAIN_INSTANCE])
def test_configurations_use_only_fields_that_triton_2_51_knows(plain) -> None:
    for config in configs(rendered(plain)).values():
        assert {field.name for field, _ in config.ListFields()} <= KNOWN_TO_TRITON_2_51


@pytest.mark.parametrize("plain", [PLAIN_SEMANTIC, PLAIN_INSTANCE])
def test_every_wire_of_the_ensemble_joins_tensors_of_one_type_and_shape(plain) -> None:
    tree = rendered(plain)
    steps = configs(tree)
    ensemble = steps[tree.ensemble[0]]
    wires = {tensor.name: tensor for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = steps[step.model_name]
        assert step.model_version == 1
        for tensor in model.input:
            assert_joined(wires[step.input_map[tensor.name]], tensor, model)
        for tensor in model.output:
            wires[step.output_map[tensor.name]] = with_batch(tensor, model)
    for tensor in ensemble.output:
        assert_joined(wires[tensor.name], tensor, ensemble)


def with_batch(tensor, model: ModelConfig):
    if model.max_batch_size:
        tensor = type(tensor)(name=tensor.name, data_type=tensor.data_type, dims=[-1, *tensor.dims])
    return tensor


def assert_joined(source, target, model: ModelConfig) -> None:
    target = with_batch(target, model)
    assert source.data_type == target.data_type
    assert list(source.dims) == list(target.dims)


@pytest.mark.parametrize("plain", [PLAIN_SEMANTIC, PLAIN_INSTANCE])
def test_no_public_output_feeds_a_later_step(plain) -> None:
    """Triton refuses requests for a subset of the outputs where one does."""
    tree = rendered(plain)
    ensemble = configs(tree)[tree.ensemble[0]]
    consumed = {wire for step in ensemble.ensemble_scheduling.step for wire in step.input_map.values()}

    assert consumed.isdisjoint(tensor.name for tensor in ensemble.output)


def test_a_network_whose_tensors_have_public_names_still_connects() -> None:
    io = replace(SEMANTIC_IO, outputs=(replace(SEMANTIC_IO.outputs[0], name="GEOMETRY"),))
    tree = render(pipeline(), Network(io, ARTIFACT))
    steps = configs(tree)
    post = steps[list(tree.steps)[2]]

    names = [tensor.name for tensor in (*post.input, *post.output)]
    assert len(names) == len(set(names))


def test_clients_find_the_revision_and_the_classes_in_the_ensemble() -> None:
    config = configs(rendered())["coins"]

    assert config.parameters["revision"].string_value == pipeline().revision
    assert dict(config.metric_tags) == {"revision": pipeline().revision}
    assert json.loads(config.parameters["classes"].string_value) == PLAIN_SEMANTIC["classes"]


def test_clients_find_the_window_of_16_bits_in_the_ensemble_and_the_first_step_in_its_options() -> None:
    tree = rendered(preprocess=[{"decode": {"window": [0, 4095]}}])

    assert json.loads(configs(tree)["coins"].parameters["window"].string_value) == [0, 4095]
    text = parsed(next(iter(tree.steps.values()))).parameters[PARAMETER].string_value
    assert '"window":[0,4095]' in text.replace(" ", "")


def test_each_step_reads_its_options_back_from_its_configuration() -> None:
    tree = rendered()
    texts = []
    for name, kind in zip(tree.steps, (PreOptions, NetOptions, PostOptions), strict=True):
        text = parsed(tree.steps[name]).parameters[PARAMETER].string_value
        given = json.dumps({"parameters": {PARAMETER: {"string_value": text}}})
        texts.append((text, kind.from_model_config(given).to_parameter()))

    assert all(text == again for text, again in texts)
    assert PostOptions.model_validate_json(texts[2][0]).pipeline == pipeline()


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        pytest.param({"model": "other"}, {"pre", "net"}, id="another model of the same network"),
        pytest.param({"artifactSha256": "b" * 64}, {"pre"}, id="other weights"),
        pytest.param({"output": {"encoding": "raw"}}, {"pre", "net"}, id="another encoding"),
        pytest.param(
            {"preprocess": [{"decode": {}}, {"resize": {"mode": "keep", "multipleOf": 32, "padding": "edge"}}]},
            {"net"},
            id="another resize",
        ),
        pytest.param({"runtime": {"maxBatchSize": 2}}, {"pre"}, id="another batch size"),
    ],
)
def test_models_share_exactly_their_equal_steps(changes: dict[str, object], shared: set[str]) -> None:
    both = set(rendered().steps) & set(rendered(**changes).steps)

    assert {name.split("--")[1] for name in both} == shared


def test_a_stage_that_changed_its_answers_is_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rendered()
    monkeypatch.setattr(type(pipeline().preprocess[1].stage), "version", 99)

    after = rendered()

    assert [a == b for a, b in zip(before.steps, after.steps, strict=True)] == [False, True, False]


def test_a_family_that_changed_its_answers_is_another_post_step(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rendered()
    changed = replace(FAMILIES["semantic-logits"], version=99)
    monkeypatch.setitem(cast("dict[str, Family]", FAMILIES), "semantic-logits", changed)

    assert [a == b for a, b in zip(before.steps, rendered().steps, strict=True)] == [True, True, False]


def test_exposing_the_network_changes_no_step_and_no_other_file() -> None:
    tree = rendered()
    exposed = with_network_alias(tree, pipeline(), SEMANTIC_IO)

    assert exposed.steps == tree.steps
    assert exposed.ensemble == tree.ensemble
    config = configs(exposed)["coins.network"]
    assert config.max_batch_size == 8
    assert [step.model_name for step in config.ensemble_scheduling.step] == [list(tree.steps)[1]]


def test_the_artifact_is_named_and_never_read() -> None:
    files = rendered().steps[list(rendered().steps)[1]]

    assert files["1/model.onnx"] == ARTIFACT


def test_each_python_step_blocks_the_cache_folder_and_names_its_own_code() -> None:
    for name, files in rendered().steps.items():
        assert files["1/__pycache__"] == b""
        kind = name.split("--")[1]
        assert files["1/model.py"].startswith(f"from segserve_builder.backend.{kind} import Tri".encode())


def test_stages_that_do_not_feed_the_network_are_refused() -> None:
    with pytest.raises(PipelineError, match="channels"):
        render(pipeline(input={"colour": "RGB"}), Network(SEMANTIC_IO, ARTIFACT))


def test_stages_that_do_not_follow_the_family_are_refused() -> None:
    with pytest.raises(PipelineError, match="removeSmallRegions"):
        render(pipeline(postprocess=[{"removeSmallRegions": {"minArea": 150}}]), Network(SEMANTIC_IO, ARTIFACT))


def test_a_changed_default_stage_is_another_post_step(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rendered(PLAIN_INSTANCE)
    monkeypatch.setattr(type(FAMILIES["yolo-seg"].default_postprocess[0]), "version", 99)

    assert [a == b for a, b in zip(before.steps, rendered(PLAIN_INSTANCE).steps, strict=True)] == [True, True, False]
