"""The shims inside Triton, run against a stand-in of its Python module."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segserve_builder.errors import BadImageError
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.step_options import NetOptions, PostOptions, PreOptions
from segserve_builder.values import ResizeTransform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from segserve_builder.spec.model_spec import Output

SHIMS = ("pre", "net", "post")
IO = NetworkIO(
    TensorSpec("x", "UINT8", (None, 1, None, None)), "NCHW", (TensorSpec("y", "FP32", (None, 1, None, None)),)
)
PIPELINE = Pipeline.model_validate(
    {
        "model": "coins",
        "artifactSha256": "a" * 64,
        "family": "semantic-logits",
        "input": {"colour": "GREY"},
        "classes": [{"id": 0, "name": "background"}],
        "preprocess": [{"decode": {}}],
        "postprocess": [],
        "output": {},
        "runtime": {},
    }
)


ALONE = """
import sys, types
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("segserve", "segserve_common", "segserve_operator"):
            raise ImportError(f"{name} is not in the copy that Triton's steps run from")
sys.meta_path.insert(0, Refuse())
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
from segserve_builder.backend import net, post, pre
from segserve_builder.steps import tiling, views
"""


def test_steps_need_nothing_but_the_copy_of_the_builder_that_they_run_from() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@dataclass
class FakeTensor:
    name: str
    array: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.array


class FakeError:
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@dataclass
class FakeResponse:
    output_tensors: list[FakeTensor]
    error: FakeError | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        assert self.error is None, self.error.message
        return {tensor.name: tensor.array for tensor in self.output_tensors}


@dataclass
class FakeRequest:
    inputs: dict[str, NDArray[Any]]
    wanted: list[str] = field(default_factory=list)
    given: str = "{}"

    def parameters(self) -> str:
        return self.given

    def requested_output_names(self) -> list[str]:
        return self.wanted


def input_tensor(request: FakeRequest, name: str) -> FakeTensor | None:
    array = request.inputs.get(name)
    return None if array is None else FakeTensor(name, array)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Triton's Python module, faked; what the shims log into it."""
    lines: list[str] = []
    fake = ModuleType("triton_python_backend_utils")
    fake.Tensor = FakeTensor
    fake.InferenceResponse = FakeResponse
    fake.TritonError = FakeError
    fake.Logger = SimpleNamespace(log_error=lines.append)
    fake.get_input_tensor_by_name = input_tensor
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    yield lines
    for name in ("responses", *SHIMS):
        sys.modules.pop(f"segserve_builder.backend.{name}", None)


def shim(kind: str, options: Any, folder: Path | None = None) -> Any:
    module = importlib.import_module(f"segserve_builder.backend.{kind}")
    config = {"parameters": {"segserve": {"string_value": options.to_parameter()}}}
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config), "model_repository": str(folder), "model_version": "1"})
    return model


@pytest.fixture
def pre(log: list[str]) -> Any:
    return shim("pre", PreOptions.of(PIPELINE, IO))


def encoded(content: bytes) -> FakeRequest:
    return FakeRequest({"IMAGE": np.array([content], np.object_)})


def test_pixels_become_the_networks_input_and_their_placement(pre: Any) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)

    arrays = pre.execute([FakeRequest({"PIXELS": pixels})])[0].arrays()

    assert arrays["NETWORK_INPUT"].shape == (1, 1, 3, 4)
    assert np.array_equal(arrays["NETWORK_INPUT"][0, 0], pixels[..., 0])
    assert ResizeTransform.from_numbers(arrays["GEOMETRY"]) == ResizeTransform.of(3, 4)
    assert arrays["GEOMETRY"].dtype == np.int32


def test_a_bad_image_is_its_callers_fault_and_harms_no_other(pre: Any, log: list[str]) -> None:
    good = FakeRequest({"PIXELS": np.zeros((3, 4, 1), np.uint8)})

    responses = pre.execute([good, encoded(b"no image"), good])

    assert [response.error and response.error.code for response in responses] == [None, "INVALID_ARG", None]
    assert log == []


def test_a_request_with_neither_or_both_is_its_callers_fault(pre: Any) -> None:
    both = FakeRequest({"PIXELS": np.zeros((3, 4, 1), np.uint8)} | encoded(b"x").inputs)

    assert [response.error.code for response in pre.execute([FakeRequest({}), both])] == ["INVALID_ARG"] * 2


def test_a_fault_of_ours_is_internal_on_one_line_and_traced_in_the_log(
    pre: Any, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("first line\n  second line" + "x" * 10_000)

    monkeypatch.setattr(pre, "_preprocess", broken)

    error = pre.execute([encoded(b"x")])[0].error

    assert error.code == "INTERNAL"
    assert error.message.startswith("ZeroDivisionError: first line second line")
    assert len(error.message) < 600
    assert "Traceback" in log[0]


def test_an_image_that_needs_too_much_memory_is_its_callers_fault_and_its_size_is_named(
    pre: Any, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise MemoryError("Unable to allocate 9.0 GiB")

    monkeypatch.setattr(pre, "_preprocess", too_large)

    responses = pre.execute([FakeRequest({"PIXELS": np.zeros((3, 4, 1), np.uint8)}), encoded(b"x")])

    assert [response.error.code for response in responses] == ["INVALID_ARG"] * 2
    assert responses[0].error.message.startswith("preprocessing an image of 3 x 4 pixels needs more memory than it may")
    assert "`segserve batch`" in responses[1].error.message
    assert log == []


class RecordedSession:
    """y = mean of x a request's item; it counts its runs and fails where an item's first pixel is 13."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        self.batches.append(len(batch))
        if (batch[:, 0, 0, 0] == 13).any():
            raise RuntimeError("unlucky")
        return {"y": batch.astype(np.float32)}


@pytest.fixture
def net(log: list[str], tmp_path: Path) -> Any:
    (tmp_path / "1").mkdir()
    dims = ["b", 1, "h", "w"]
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    values = [helper.make_tensor_value_info("x", TensorProto.UINT8, dims)]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "1" / "model.onnx").write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    return shim("net", NetOptions.of(PIPELINE, IO), tmp_path)


def image(value: int, items: int = 1, width: int = 4) -> FakeRequest:
    return FakeRequest({"x": np.full((items, 1, 3, width), value, np.uint8)})


def test_requests_of_one_shape_are_run_once_and_each_gets_its_own_items(
    net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = RecordedSession()
    monkeypatch.setattr(net, "_session", session)

    responses = net.execute([image(1), image(2, items=3), image(3)])

    assert session.batches == [5]
    assert [response.arrays()["y"].shape[0] for response in responses] == [1, 3, 1]
    assert [float(response.arrays()["y"].max()) for response in responses] == [1, 2, 3]


def test_requests_of_unequal_shapes_are_still_answered_in_order(net: Any) -> None:
    responses = net.execute([image(1), image(2, width=8), image(3)])

    assert [response.arrays()["y"].shape for response in responses] == [(1, 1, 3, 4), (1, 1, 3, 8), (1, 1, 3, 4)]
    assert [float(response.arrays()["y"].min()) for response in responses] == [1, 2, 3]


def test_a_request_that_fails_the_batch_fails_alone(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "_session", RecordedSession())

    responses = net.execute([image(1), image(13), image(3), FakeRequest({})])

    assert [response.error and response.error.code for response in responses] == [
        None,
        "INTERNAL",
        None,
        "INVALID_ARG",
    ]


def test_a_tensor_that_onnx_runtime_refuses_is_its_callers_fault(net: Any) -> None:
    wrong = FakeRequest({"x": np.zeros((1, 1, 3), np.uint8)})

    assert net.execute([wrong])[0].error.code == "INVALID_ARG"


class FakePostprocess:
    """Records what it is asked; stands in for the real one, whose tests are its own."""

    def __init__(self, pipeline: Pipeline, io: NetworkIO, second: NetworkIO | None) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, outputs, transform, request, wanted, guide, second, frame) -> dict[str, NDArray[Any]]:
        self.calls.append((outputs, transform, request, wanted))
        return {name: np.zeros(1, np.int32) for name in wanted}


def fake_request(parameters: dict[str, Any], output: Output) -> RequestOptions:
    if "nonsense" in parameters:
        raise BadImageError("unknown parameter 'nonsense'")
    return RequestOptions(**parameters)


@pytest.fixture
def post(log: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = ModuleType("segserve_builder.steps.postprocess")
    fake.Postprocess, fake.request_from_parameters = FakePostprocess, fake_request
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    options = PostOptions(revision=PIPELINE.revision, pipeline=PIPELINE, stage_versions=(), family_version=1, io=IO)
    return shim("post", options)


def raw(wanted: list[str], parameters: str = "{}") -> FakeRequest:
    inputs = {
        "NETWORK_OUTPUT_y": np.ones((1, 1, 3, 4), np.float32),
        "GEOMETRY": np.array(ResizeTransform.of(3, 4).to_numbers(), np.int32),
    }
    return FakeRequest(inputs, wanted, parameters)


def test_only_requested_outputs_are_computed_from_the_networks_own_names(post: Any) -> None:
    arrays = post.execute([raw(["SIZE", "REVISION"], '{"score_threshold": 0.25}')])[0].arrays()

    outputs, transform, request, wanted = post._postprocess.calls[0]
    assert set(arrays) == {"SIZE", "REVISION"}
    assert arrays["REVISION"].tolist() == [PIPELINE.revision.encode()]
    assert wanted == {"SIZE"}
    assert set(outputs) == {"y"}
    assert transform == ResizeTransform.of(3, 4)
    assert request.score_threshold == 0.25


def test_a_bad_parameter_or_a_missing_tensor_is_its_callers_fault(post: Any) -> None:
    lacking = FakeRequest({}, ["SIZE"])

    codes = [response.error.code for response in post.execute([raw(["SIZE"], '{"nonsense": 1}'), lacking])]

    assert codes == ["INVALID_ARG", "INVALID_ARG"]
