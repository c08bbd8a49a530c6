"""What changes with the server that a revision is rendered for, and what never does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from segserve_builder.errors import UnknownNameError
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.render.config import VERSION, network_config
from segserve_builder.render.target import EMBEDDED, RenderTarget
from segserve_builder.render.tree import CONFIG_FILE, Network, Tree, render, with_network_alias
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.step_options import MODEL_FILE, NetOptions

GOLDEN = Path(__file__).parents[2] / "golden" / "pbtxt-26.04-onnxruntime"
ARTIFACT = Path("/cache/sha256/artifact")
ON_CPU = RenderTarget.named("26.04", "onnxruntime")
NATIVE = replace(ON_CPU, has_gpu=True)
TARGETS = {
    "24.10 python": EMBEDDED,
    "24.10 onnxruntime, GPU": replace(NATIVE, release=(24, 10)),
    "25.12 onnxruntime, GPU": replace(NATIVE, release=(25, 12)),
    "26.04 python": RenderTarget.named("26.04", "python"),
    "26.04 onnxruntime, GPU": NATIVE,
}
SEMANTIC_IO = NetworkIO(
    TensorSpec("image", "UINT8", (None, 1, None, None)),
    "NCHW",
    (TensorSpec("logits", "FP32", (None, 2, None, None)),),
)
PLAIN: dict[str, Any] = {
    "model": "coins",
    "artifactSha256": "a" * 64,
    "family": "semantic-logits",
    "input": {"colour": "GREY"},
    "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}],
    "preprocess": [{"decode": {}}, {"resize": {"mode": "keep", "multipleOf": 16, "padding": "edge"}}],
    "postprocess": [{"argmax": {}}],
    "output": {},
    "runtime": {"maxQueueDelayUs": 500, "instances": 2, "intraOpThreads": 3},
}


def pipeline(**changes: Any) -> Pipeline:
    return Pipeline.model_validate(PLAIN | changes)


def tree(target: RenderTarget, io: NetworkIO = SEMANTIC_IO, **changes: Any) -> Tree:
    return render(pipeline(**changes), Network(io, ARTIFACT), target=target)


def config(found: Tree, name: str) -> Any:
    content = {**found.steps, **found.public}[name][CONFIG_FILE]
    assert isinstance(content, bytes)
    return text_format.Parse(content.decode(), ModelConfig())


def net(found: Tree) -> Any:
    return config(found, found.networks[0])


def fields(message: Any) -> set[str]:
    return {field.name for field, _ in message.ListFields()}


@pytest.mark.same
def test_configurations_for_26_04_with_the_native_backend_equal_the_golden_files() -> None:
    """Write them anew with `make write`, and read the difference before committing it."""
    found = with_network_alias(tree(NATIVE), pipeline(), SEMANTIC_IO)
    kinds = ("pre", "net", "post", "network", "ensemble")
    everything = {**found.steps, **found.public}
    for kind, files in zip(kinds, everything.values(), strict=True):
        path = GOLDEN / f"{kind}.pbtxt"
        content = files[CONFIG_FILE]
        assert isinstance(content, bytes)
        if os.environ.get("SEGSERVE_WRITE_GOLDEN"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        assert content == path.read_bytes(), path


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_each_release_gets_only_the_fields_that_it_knows(target: RenderTarget) -> None:
    found = tree(target)
    seen = {field for name in (*found.steps, *found.public) for field in fields(config(found, name))}
    assert ("model_metrics" in seen) == (target.release >= (26, 1))
    ensemble = config(found, "coins").ensemble_scheduling
    assert fields(ensemble) == {"step"}
    assert {step.model_version for step in ensemble.step} == {VERSION}


def test_networks_that_run_differently_have_steps_of_different_names() -> None:
    names = [tree(target).networks[0] for target in TARGETS.values()]
    # The release alone changes nothing where it knows no more.
    assert names[1] == names[2]
    assert len(set(names)) == len(names) - 1


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_revision_and_the_steps_around_the_network_are_those_of_every_target(target: RenderTarget) -> None:
    found, known = tree(target), tree(EMBEDDED)
    assert config(found, "coins").parameters["revision"].string_value == pipeline().revision
    assert [name for name in found.steps if name not in found.networks] == [
        name for name in known.steps if name not in known.networks
    ]


def test_a_native_network_is_its_file_with_the_tensors_of_the_python_step() -> None:
    found, known = tree(NATIVE), tree(EMBEDDED)
    native, python = net(found), net(known)
    assert found.steps[found.networks[0]].keys() == {CONFIG_FILE, f"1/{MODEL_FILE}"}
    assert (native.backend, native.instance_group[0].count) == ("onnxruntime", 2)
    assert native.parameters["intra_op_thread_count"].string_value == "3"
    assert (native.input, native.output) == (python.input, python.output)
    assert (native.max_batch_size, native.dynamic_batching) == (python.max_batch_size, python.dynamic_batching)
    assert (found.native, known.native) == (set(found.networks), frozenset())


@pytest.mark.parametrize(
    ("cpus", "runtime", "preferred"),
    [
        (2, {}, [2]),
        (7, {}, [7]),
        (8, {}, []),
        (1, {}, []),
        (None, {}, []),
        (2, {"device": "gpu"}, []),
        (2, {"intraOpThreads": 1}, []),
        (2, {"engine": "openvino"}, []),
    ],
)
def test_a_batch_whose_images_have_a_core_each_is_as_large_as_the_server_has_cores(
    cpus: int | None, runtime: dict[str, Any], preferred: list[int]
) -> None:
    given, target = pipeline(runtime={"maxBatchSize": 8, **runtime}), replace(EMBEDDED, cpus=cpus)
    found = net(render(given, Network(SEMANTIC_IO, ARTIFACT), target=target, apart=True))

    assert list(found.dynamic_batching.preferred_batch_size) == preferred


@pytest.mark.parametrize(("cpus", "threads"), [(2, "2"), (None, "")])
def test_a_native_network_has_a_thread_for_each_processor_of_the_container(cpus: int | None, threads: str) -> None:
    found = net(tree(replace(ON_CPU, cpus=cpus), runtime={"engine": "openvino"}))

    assert found.parameters["intra_op_thread_count"].string_value == threads


@pytest.mark.parametrize(
    ("target", "device", "kind"),
    [
        pytest.param(NATIVE, None, "KIND_AUTO", id="a server with a GPU decides"),
        pytest.param(NATIVE, "cpu", "KIND_CPU", id="the CPU of a server with a GPU"),
        pytest.param(ON_CPU, None, "KIND_CPU", id="a server without a GPU decides"),
        pytest.param(ON_CPU, "gpu", "KIND_GPU", id="a server that lacks the GPU refuses the network"),
        pytest.param(replace(EMBEDDED, has_gpu=True), None, "KIND_CPU", id="without a backend for GPUs"),
        pytest.param(EMBEDDED, "gpu", "KIND_GPU", id="by the Python step"),
    ],
)
def test_a_network_runs_where_it_says_or_else_where_its_server_can(
    target: RenderTarget, device: str | None, kind: str
) -> None:
    found = net(tree(target, runtime={} if device is None else {"device": device}))

    assert found.instance_group[0].kind == found.instance_group[0].Kind.Value(kind)
    assert found.backend == ("python" if kind == "KIND_CPU" or target.backend == "python" else "onnxruntime")


def test_the_native_step_of_another_file_has_another_name() -> None:
    assert tree(NATIVE).networks != tree(NATIVE, artifactSha256="b" * 64).networks


FIXED = replace(SEMANTIC_IO, input=TensorSpec("image", "UINT8", (1, 1, None, None)))
NOT_BATCHED = replace(SEMANTIC_IO, batched=False)
TILES = {"inference": [{"tile": {"height": 64, "width": 64}}]}
OPENVINO = {"runtime": {"engine": "openvino"}}


@pytest.mark.parametrize(
    ("target", "io", "changes"),
    [
        pytest.param(NATIVE, SEMANTIC_IO, TILES, id="tiles of an image"),
        pytest.param(ON_CPU, FIXED, OPENVINO, id="an input of one image"),
        pytest.param(ON_CPU, NOT_BATCHED, OPENVINO, id="outputs of one image"),
    ],
)
def test_what_the_native_backend_cannot_do_stays_with_python(
    target: RenderTarget, io: NetworkIO, changes: dict[str, Any]
) -> None:
    found = tree(target, io, **changes)
    assert net(found).backend == "python"
    assert net(found).instance_group[0].kind == net(found).instance_group[0].KIND_CPU
    assert found.native == frozenset()


GPU = {"runtime": {"maxBatchSize": 1, "device": "gpu"}}
ONE_AT_A_TIME = replace(
    FIXED,
    outputs=(TensorSpec("boxes", "FP32", (1, None, 4)), TensorSpec("labels", "INT64", (1, None))),
    batched=False,
)


def shapes(tensors: Any) -> list[tuple[list[int], list[int] | None]]:
    """Return the shapes as callers and as the file have them, the second only if it differs."""
    return [(list(each.dims), list(each.reshape.shape) if each.HasField("reshape") else None) for each in tensors]


@pytest.mark.parametrize(
    ("io", "single", "given", "returned"),
    [
        pytest.param(FIXED, False, ([1, 1, -1, -1], None), [([-1, 2, -1, -1], None)], id="a batch of one"),
        pytest.param(
            ONE_AT_A_TIME,
            False,
            ([1, 1, -1, -1], None),
            [([1, -1, 4], [-1, 4]), ([1, -1], [-1])],
            id="outputs without a batch",
        ),
        pytest.param(
            ONE_AT_A_TIME,
            True,
            ([1, 1, -1, -1], [1, -1, -1]),
            [([1, -1, 4], [-1, 4]), ([1, -1], [-1])],
            id="no batch at all",
        ),
    ],
)
def test_on_a_gpu_triton_adds_the_batch_that_a_file_lacks(
    io: NetworkIO, single: bool, given: Any, returned: Any
) -> None:
    spec = pipeline(**GPU)
    found = network_config(NetOptions.of(spec, io), io, spec.runtime, NATIVE, native=True, single=single)
    assert (found.backend, found.max_batch_size) == ("onnxruntime", 0)
    assert not found.HasField("dynamic_batching")
    assert shapes(found.input) == [given]
    assert shapes(found.output) == returned


@pytest.mark.parametrize("runtime", [GPU, {"runtime": {}}], ids=["gpu", "auto"])
def test_the_public_network_of_a_file_of_one_image_takes_what_its_step_takes(runtime: dict[str, Any]) -> None:
    found = with_network_alias(tree(NATIVE, FIXED, **runtime), pipeline(**runtime), FIXED)
    assert found.native == set(found.networks)
    public, step = config(found, "coins.network"), net(found)
    assert (public.max_batch_size, public.input, public.output) == (0, step.input, step.output)


@pytest.mark.parametrize(("release", "backend"), [("26.4", "python"), ("24.09", "python"), ("26.04", "openvino")])
def test_a_target_that_nobody_knows_is_refused(release: str, backend: str) -> None:
    with pytest.raises(UnknownNameError):
        RenderTarget.named(release, backend)
