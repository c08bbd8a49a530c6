"""The engine and the device of a network: allowed values, servers that lack them, and answers."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from pydantic import ValidationError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from segserve_builder.cluster import triton
from segserve_builder.errors import BadImageError, EngineError
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.gpus import visible_gpus
from segserve_builder.render.target import EMBEDDED, RenderTarget
from segserve_builder.render.tree import CONFIG_FILE, Network, Sharing, Tree, render
from segserve_builder.steps import engine_cache, openvino_session
from segserve_builder.steps.inference import network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.openvino_session import OpenVinoSession
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.session import NetworkSession, open_session
from segserve_builder.steps.step_options import NetOptions, engines_name

GOLDEN = Path(__file__).parents[2] / "golden" / "pbtxt-26.04-onnxruntime"
COINS = Path(__file__).parents[3] / "examples/coins/coins-unet.onnx"
NATIVE = replace(RenderTarget.named("26.04", "onnxruntime"), has_gpu=True)
IO = NetworkIO(
    TensorSpec("image", "UINT8", (None, 1, 64, 96)), "NCHW", (TensorSpec("logits", "FP32", (None, 2, 64, 96)),)
)
ANY_SIZE = replace(IO, input=TensorSpec("image", "UINT8", (None, 1, None, None)))
PLAIN: dict[str, Any] = {
    "model": "coins",
    "artifactSha256": "a" * 64,
    "family": "semantic-logits",
    "input": {"colour": "GREY"},
    "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}],
    "preprocess": [{"decode": {}}, {"resize": {"mode": "stretch", "height": 64, "width": 96}}],
    "postprocess": [{"argmax": {}}],
    "output": {},
}
T4 = "Tesla T4, driver 550.54.15, compute capability 7.5"


def pipeline(**runtime: Any) -> Pipeline:
    return Pipeline.model_validate(PLAIN | {"runtime": runtime})


def tree(target: RenderTarget = EMBEDDED, io: NetworkIO = IO, **runtime: Any) -> Tree:
    return render(pipeline(**runtime), Network(io, Path("/cache/artifact")), target=target)


def network_config(found: Tree) -> str:
    content = found.steps[found.networks[0]][CONFIG_FILE]
    assert isinstance(content, bytes)
    return content.decode()


@pytest.mark.parametrize("target", [EMBEDDED, NATIVE], ids=["python", "native"])
def test_a_default_that_is_spelt_out_changes_nothing(target: RenderTarget) -> None:
    spelt_out = {"engine": "onnxruntime", "device": "auto", "precision": "fp32"}
    assert pipeline(**spelt_out).revision == pipeline().revision
    assert tree(target, **spelt_out) == tree(target)


def test_another_engine_or_device_is_another_revision_for_its_answers_may_differ() -> None:
    settings: list[dict[str, str]] = [{}, {"device": "cpu"}, {"device": "gpu"}, {"engine": "openvino"}]
    settings += [{"engine": "tensorrt", "precision": each} for each in ("fp32", "fp16", "int8")]
    assert len({pipeline(**each).revision for each in settings}) == len(settings)
    assert pipeline(engine="tensorrt", precision="fp32") == pipeline(engine="tensorrt")


@pytest.mark.parametrize(("engine", "device"), [("openvino", "cpu"), ("tensorrt", "gpu")])
def test_an_engine_of_one_device_settles_it(engine: str, device: str) -> None:
    settled = pipeline(engine=engine)
    for written in ("auto", device):
        assert pipeline(engine=engine, device=written).revision == settled.revision
    assert f"kind: KIND_{device.upper()}" in network_config(tree(engine=engine))


@pytest.mark.parametrize(
    ("runtime", "says"),
    [
        ({"engine": "openvino", "device": "gpu"}, "engine openvino runs on the device cpu, not on gpu"),
        ({"engine": "tensorrt", "device": "cpu"}, "engine tensorrt runs on the device gpu, not on cpu"),
        ({"engine": "openvino", "device": "tpu"}, "'auto', 'cpu' or 'gpu'"),
        ({"engine": "torch"}, "'onnxruntime', 'tensorrt' or 'openvino'"),
        ({"engine": "tensorrt", "precision": "bf16"}, "'fp32', 'fp16' or 'int8'"),
    ],
)
def test_an_engine_that_does_not_run_on_the_device_is_refused(runtime: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        pipeline(**runtime)


RUNTIMES: dict[str, dict[str, Any]] = {
    "cuda": {"device": "gpu"},
    "openvino": {"engine": "openvino"},
    "tensorrt": {"engine": "tensorrt"},
    "tensorrt-any-size": {"engine": "tensorrt"},
    "tensorrt-fp16": {"engine": "tensorrt", "precision": "fp16"},
    "tensorrt-int8": {"engine": "tensorrt", "precision": "int8"},
}


@pytest.mark.same
@pytest.mark.parametrize("name", RUNTIMES)
def test_native_configurations_equal_the_golden_files(name: str) -> None:
    """Write them again with SEGSERVE_WRITE_GOLDEN=1, and read the difference before committing it."""
    text = network_config(tree(NATIVE, ANY_SIZE if name.endswith("any-size") else IO, **RUNTIMES[name], maxBatchSize=4))
    path = GOLDEN / f"net-{name}.pbtxt"
    if os.environ.get("SEGSERVE_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize(
    ("target", "device", "kind"),
    [
        (EMBEDDED, "auto", "KIND_CPU"),
        (EMBEDDED, "gpu", "KIND_GPU"),
        (NATIVE, "auto", "KIND_AUTO"),
        (NATIVE, "cpu", "KIND_CPU"),
        (NATIVE, "gpu", "KIND_GPU"),
    ],
)
def test_the_networks_instances_are_of_the_device_and_all_other_steps_of_the_cpu(
    target: RenderTarget, device: str, kind: str
) -> None:
    found = tree(target, device=device)
    for name, files in found.steps.items():
        (group,) = text_format.Parse(files[CONFIG_FILE], ModelConfig()).instance_group
        assert group.Kind.Name(group.kind) == (kind if name in found.networks else "KIND_CPU")


@pytest.mark.parametrize(
    ("io", "device", "batches"),
    [(IO, "gpu", [1, 2, 4, 6]), (ANY_SIZE, "gpu", []), (IO, "cpu", []), (IO, "auto", [1, 2, 4, 6])],
)
def test_a_gpu_runs_each_size_of_batch_of_one_size_of_image_before_the_network_is_ready(
    io: NetworkIO, device: str, batches: list[int]
) -> None:
    config = text_format.Parse(network_config(tree(NATIVE, io, device=device, maxBatchSize=6)), ModelConfig())
    assert [sample.batch_size for sample in config.model_warmup] == batches
    for sample in config.model_warmup:
        ((name, given),) = sample.inputs.items()
        assert (name, list(given.dims), given.zero_data) == ("image", [1, 64, 96], True)


@pytest.mark.parametrize(
    ("devices", "exists", "first"),
    [("GPU-0a1b", True, True), ("all", True, True), ("void", True, False), ("", True, False), ("all", False, False)],
)
def test_nvidias_entrypoint_comes_before_triton_if_there_is_one_and_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str, exists: bool, first: bool
) -> None:
    entrypoint = tmp_path / "nvidia_entrypoint.sh"
    if exists:
        entrypoint.touch()
    monkeypatch.setattr(triton, "NVIDIA_ENTRYPOINT", entrypoint)
    assert triton.gpu_entrypoint({"NVIDIA_VISIBLE_DEVICES": devices}) == ((str(entrypoint),) if first else ())


def test_engines_of_two_files_batch_sizes_or_precisions_have_two_folders_for_they_are_named_by_the_graph_alone() -> (
    None
):
    folders = set()
    for letter, more in product("ab", [{}, {"maxBatchSize": 4}, {"precision": "fp16"}, {"precision": "int8"}]):
        made = Pipeline.model_validate(
            PLAIN | {"artifactSha256": letter * 64, "runtime": {"engine": "tensorrt", **more}}
        )
        found = render(made, Network(IO, Path("/cache/artifact")), target=NATIVE)
        config = text_format.Parse(network_config(found), ModelConfig())
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (
            accelerator.parameters["trt_engine_cache_path"]
            == f"/tmp/segserve-engines/{engines_name(letter * 64, made.runtime)}"
        )
        folders.add(accelerator.parameters["trt_engine_cache_path"])
    assert len(folders) == 8


@pytest.mark.parametrize(("runtime", "members"), [({"engine": "openvino"}, 1), ({"device": "gpu"}, 1), ({}, 2)])
def test_a_network_of_another_engine_or_a_gpu_shares_no_process(
    tmp_path: Path, runtime: dict[str, Any], members: int
) -> None:
    artifact = tmp_path / "model.onnx"
    artifact.write_bytes(b"x")
    found = render(pipeline(**runtime), Network(IO, artifact), sharing=Sharing(post=True, networks=True))
    assert len(found.members) == members


@pytest.fixture(scope="module")
def coins() -> NetOptions:
    made = Pipeline.model_validate(
        PLAIN
        | {
            "runtime": {},
            "preprocess": [{"decode": {}}, {"resize": {"mode": "keep", "multipleOf": 16, "padding": "edge"}}],
        }
    )
    return NetOptions.of(made, network_io(made, read_signature(COINS)))


def test_openvino_answers_as_onnx_runtime_does_for_batches_of_any_size_in_any_order(coins: NetOptions) -> None:
    ours = NetworkSession(COINS, coins)
    theirs = NetworkSession(COINS, coins.model_copy(update={"engine": "openvino", "intra_op_threads": 1}))
    random = np.random.default_rng(0)
    for shape in ((1, 1, 96, 64), (3, 1, 64, 64), (1, 1, 320, 320), (2, 1, 32, 48), (1, 1, 96, 64)):
        batch = random.integers(0, 256, shape).astype(np.uint8)
        (expected,), (found,) = ours.run(batch).values(), theirs.run(batch).values()
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        # FP32 in another order of sums: a thousandth of what separates two classes.
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_an_answer_of_openvino_stays_while_the_next_image_is_answered(coins: NetOptions) -> None:
    session = NetworkSession(COINS, coins.model_copy(update={"engine": "openvino"}))
    first = session.run(np.zeros((1, 1, 32, 32), np.uint8))["logits"]
    kept = first.copy()
    session.run(np.full((1, 1, 32, 32), 255, np.uint8))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((1, 1, 32, 32), np.float32), r"'image' is float32 of shape \[1, 1, 32, 32\]; expected uint8"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"of shape \[1, 3, 32, 32\]; expected uint8 of shape \[\?,1,\?,\?\]"),
        (np.zeros((32, 32), np.uint8), r"of shape \[32, 32\]"),
    ],
)
def test_an_input_that_does_not_fit_the_file_is_the_callers_fault(array: Any, says: str) -> None:
    with pytest.raises(BadImageError, match=says):
        OpenVinoSession(COINS).run(["logits"], {"image": array})


def test_a_server_without_openvino_says_what_to_install(monkeypatch: pytest.MonkeyPatch, coins: NetOptions) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino_session._openvino.cache_clear()
    with pytest.raises(EngineError, match=r"no package openvino.* `segserve up` .*==20"):
        NetworkSession(COINS, coins.model_copy(update={"engine": "openvino"}))
    openvino_session._openvino.cache_clear()


def test_a_file_that_openvino_cannot_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    shape = [1, 3, 8, 8]
    graph = helper.make_graph(
        [helper.make_node("StringNormalizer", ["image"], ["logits"])],
        "strings",
        [helper.make_tensor_value_info("image", TensorProto.STRING, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.STRING, shape)],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(EngineError, match=r"OpenVINO 20\S+ cannot run model\.onnx: .*StringNormalizer"):
        OpenVinoSession(path)


class FakeRuntime:
    """What ONNX Runtime says on a machine with GPUs: which providers it has, and which of them start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, has: list[str], starts: list[str] | None = None) -> None:
        self.given: list[Any] = []
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*has, "CPUExecutionProvider"])
        monkeypatch.setattr(onnxruntime, "InferenceSession", self._session)
        self._starts = [*(has if starts is None else starts), "CPUExecutionProvider"]

    def _session(self, path: str, options: Any, providers: list[Any]) -> Any:
        self.given = providers
        return SimpleNamespace(get_providers=lambda: self._starts)


CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


@pytest.mark.parametrize(
    ("has", "starts", "builds", "says"),
    [
        ([], None, False, r"device is gpu, but .* has \['CPUE.*needs CUDAEx.* \(package onnxruntime-gpu"),
        ([CUDA], None, True, r"engine is tensorrt, but .*it needs Tensorrt.*onnxruntime-gpu.*and TensorRT's libraries"),
        ([TENSORRT, CUDA], [CUDA], True, r"Tensorrt\w+ does not start on GPU 1; what starts is \['CUDA"),
        ([CUDA], [], False, r"CUDA\w+ does not start on GPU 1; what starts is \['CPUE"),
    ],
)
def test_a_provider_that_is_missing_or_does_not_start_is_not_replaced_by_another(
    monkeypatch: pytest.MonkeyPatch, has: list[str], starts: list[str] | None, builds: bool, says: str
) -> None:
    FakeRuntime(monkeypatch, has, starts)
    with pytest.raises(EngineError, match=says):
        open_session(COINS, gpu=1, trt={} if builds else None)


def test_tensorrt_without_a_gpu_is_refused() -> None:
    with pytest.raises(EngineError, match="engine is tensorrt, but this server gives the network no GPU"):
        open_session(COINS, trt={})


@pytest.mark.parametrize("precision", [None, "fp16", "int8"])
def test_tensorrt_comes_before_cuda_with_its_precision_and_keeps_its_engines_and_timings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, coins: NetOptions, precision: Any
) -> None:
    runtime = FakeRuntime(monkeypatch, [TENSORRT, CUDA])
    monkeypatch.setenv(engine_cache.FOLDER_VARIABLE, str(tmp_path))
    made = coins.model_copy(update={"engine": "tensorrt", "precision": precision})
    open_session(COINS, gpu=1, trt=engine_cache.tensorrt_options(made))
    (first, options), (second, _), last = runtime.given
    assert (first, second, last) == (TENSORRT, CUDA, "CPUExecutionProvider")
    folder = tmp_path / str(engines_name(made.artifact_sha256, made))
    expected = {
        "device_id": 1,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }
    assert options == (expected if precision is None else {**expected, f"trt_{precision}_enable": True})
    assert folder.stat().st_mode & 0o777 == 0o700


def test_engines_are_kept_by_file_gpu_driver_and_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_cache, "LIBRARIES", (tmp_path,))
    monkeypatch.delenv("NVIDIA_TRITON_SERVER_VERSION", raising=False)
    packages: list[SimpleNamespace] = []
    monkeypatch.setattr(engine_cache, "distributions", lambda: packages)

    def library(version: str) -> None:
        for old in tmp_path.iterdir():
            old.unlink()
        (tmp_path / f"libnvinfer.so.10.{version}").touch()
        (tmp_path / "libnvinfer.so.10").symlink_to(f"libnvinfer.so.10.{version}")

    found = [engine_cache.built_for("a", [T4])]
    assert engine_cache.built_for("a", [T4]) == found[0]
    found += [engine_cache.built_for("b", [T4])]
    found += [
        engine_cache.built_for("a", [T4.replace(*each)]) for each in [("550", "575"), ("T4", "A10G"), ("7.5", "8")]
    ]
    for version in ("13.2", "14.1"):
        library(version)
        found.append(engine_cache.built_for("a", [T4]))
    for name in ("tensorrt", "onnxruntime-gpu"):
        packages.append(SimpleNamespace(name=name, version="1"))
        found.append(engine_cache.built_for("a", [T4]))
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "26.04")
    found.append(engine_cache.built_for("a", [T4]))
    packages.append(SimpleNamespace(name="numpy", version="2"))
    assert engine_cache.built_for("a", [T4]) == found[-1]
    assert len(set(found)) == len(found) == 10


@pytest.mark.parametrize(
    ("answer", "gpus"),
    [
        ("", ()),
        ("Tesla T4, 550.54.15, 7.5\n", (T4,)),
        ("Tesla T4, 550.54.15, 7.5\n" * 8, (f"8 x {T4}",)),
        (
            "NVIDIA H100 80GB HBM3 MIG 1g.10gb, 580.1, 9.0\n",
            ("NVIDIA H100 80GB HBM3 MIG 1g.10gb, driver 580.1, compute capability 9.0",),
        ),
    ],
    ids=["none", "one", "eight", "a part of one"],
)
def test_gpus_are_those_that_the_driver_lists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, gpus: tuple[str, ...]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus.__wrapped__() == gpus


def test_a_driver_that_does_not_answer_has_no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus.__wrapped__() == ()
