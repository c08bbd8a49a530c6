"""The shims inside Triton, run against a stand-in of its Python module."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fakes.collector import collector
from fakes.pipelines import pipeline_of
from fakes.triton_python import FakeError, FakeMetricFamily, FakeRequest, FakeTensor, triton_python
from fakes.waiting import until
from segserve_builder.errors import BadImageError
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.spec.model_spec import COUNTED, ModelClass, OutOfDistributionPolicy
from segserve_builder.spec.names import AGENT_REQUEST_ID, TRACES_VARIABLE
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.answer_metrics import Measures
from segserve_builder.steps.pipeline import Cascade, LightNetwork, Pipeline
from segserve_builder.steps.postprocess import slice_of_parameters
from segserve_builder.steps.step_options import HeavyOptions, NetOptions, PostOptions, PreOptions
from segserve_builder.values import ImageStatistics, ResizeTransform

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from segserve_builder.spec.model_spec import Output

IO = NetworkIO(
    TensorSpec("x", "UINT8", (None, 1, None, None)), "NCHW", (TensorSpec("y", "FP32", (None, 1, None, None)),)
)
BACKGROUND = {"id": 0, "name": "background"}
PIPELINE = pipeline_of(classes=[BACKGROUND], input={"colour": "GREY"}, preprocess=[{"decode": {}}])


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


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Triton's Python module, faked; what the shims log into it."""
    with triton_python() as lines:
        yield lines


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
    both = FakeRequest({"PIXELS": np.zeros((3, 4, 1), np.uint8)} | encoded(b"x").inputs_by_name)

    assert [response.error.code for response in pre.execute([FakeRequest({}), both])] == ["INVALID_ARG"] * 2


def test_a_fault_of_ours_is_internal_on_one_line_and_traced_in_the_log(
    pre: Any, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("first line\n  second line" + "x" * 10_000)

    monkeypatch.setattr(pre, "_preprocess", broken)

    request = encoded(b"x")
    request.id = "order-1\nE9999 forged"
    error = pre.execute([request])[0].error

    assert error.code == "INTERNAL"
    assert error.message.startswith("ZeroDivisionError: first line second line")
    assert len(error.message) < 600
    assert log[0].startswith("step 'segserve--step--0123456789', request 'order-1\\nE9999 forged': Traceback")


def test_an_image_that_needs_too_much_memory_is_its_callers_fault_and_its_size_is_named(
    pre: Any, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise MemoryError("Unable to allocate 9.0 GiB")

    monkeypatch.setattr(pre, "_preprocess", too_large)

    responses = pre.execute([FakeRequest({"PIXELS": np.zeros((3, 4, 1), np.uint8)}), encoded(b"x")])

    assert [response.error.code for response in responses] == ["INVALID_ARG"] * 2
    assert responses[0].error.message.startswith("preprocessing an image of 4 x 3 pixels needs more memory than it may")
    assert "`segserve batch`" in responses[1].error.message
    assert log == []


class RecordedSession:
    """y = mean of x a request's item; it counts its runs and fails where an item's first pixel is 13."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run_each(self, batches: Sequence[Sequence[NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        self.batches.append(sum(len(batch) for (batch,) in batches))
        if any((batch[:, 0, 0, 0] == 13).any() for (batch,) in batches):
            raise RuntimeError("unlucky")
        return [{"y": batch.astype(np.float32)} for (batch,) in batches]


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


def test_a_request_that_fails_the_batch_fails_alone_and_the_log_names_it(
    net: Any, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net, "_session", RecordedSession())
    requests = [image(1), image(13), image(3), FakeRequest({})]
    for number, request in enumerate(requests):
        request.id = f"order-{number}"

    responses = net.execute(requests)

    assert [response.error and response.error.code for response in responses] == [
        None,
        "INTERNAL",
        None,
        "INVALID_ARG",
    ]
    assert [line.partition(":")[0] for line in log] == ["step 'segserve--step--0123456789', request 'order-1'"]


def test_each_traced_request_of_a_batch_has_a_span_with_the_batchs_size_below_the_steps(
    net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [image(1), image(2, items=3), image(3)]
    requests[0].context = json.dumps({"traceparent": f"00-{'1a' * 16}-{'2b' * 8}-01"})
    requests[2].context = json.dumps({"traceparent": f"00-{'3c' * 16}-{'4d' * 8}-01", "tracestate": "a=b"})
    with collector() as received:
        monkeypatch.setenv(TRACES_VARIABLE, f"{received.url}/v1/traces")
        assert [response.error for response in net.execute(requests)] == [None] * 3
        spans = until(lambda: received.spans if len(received.spans) == 2 else None, "the spans of the batch")

    sizes = {"segserve.batch_size": "5", "segserve.batch_requests": "3"}
    assert [(span.trace, span.parent, span.name, span.attributes) for span in spans] == [
        ("1a" * 16, "2b" * 8, "batch", sizes),
        ("3c" * 16, "4d" * 8, "batch", sizes),
    ]
    assert {span.service for span in spans} == {"segserve-triton"}
    assert len({span.id for span in spans}) == 2


@pytest.mark.parametrize("context", ["", "no JSON", '{"traceparent": "00-1a"}'])
def test_a_request_without_a_readable_trace_context_is_answered_and_has_no_span(
    net: Any, monkeypatch: pytest.MonkeyPatch, context: str
) -> None:
    requests = [image(1), image(2)]
    requests[0].context = context
    requests[1].context = json.dumps({"traceparent": f"00-{'3c' * 16}-{'4d' * 8}-01"})
    with collector() as received:
        monkeypatch.setenv(TRACES_VARIABLE, f"{received.url}/v1/traces")
        assert [response.error for response in net.execute(requests)] == [None] * 2
        spans = until(lambda: list(received.spans), "the span of the other request")

    assert [span.trace for span in spans] == ["3c" * 16]


def test_a_tensor_that_onnx_runtime_refuses_is_its_callers_fault(net: Any) -> None:
    wrong = FakeRequest({"x": np.zeros((1, 1, 3), np.uint8)})

    assert net.execute([wrong])[0].error.code == "INVALID_ARG"


class FakePostprocess:
    """Records what it is asked; stands in for the real one, whose tests are its own."""

    def __init__(self, pipeline: Pipeline, io: NetworkIO, second: NetworkIO | None) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def value(self, outputs, transform, request, guide, second, frame) -> Any:
        return outputs, transform

    def encoded(self, value: Any, request: RequestOptions, wanted: frozenset[str]) -> dict[str, NDArray[Any]]:
        self.calls.append((*value, request, wanted))
        return {name: np.zeros(1, np.int32) for name in wanted}


def fake_request(parameters: dict[str, Any], output: Output) -> RequestOptions:
    if "nonsense" in parameters:
        raise BadImageError("unknown parameter 'nonsense'")
    return RequestOptions(**parameters)


@pytest.fixture
def post(log: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    # A module that takes names from the real one must have them before.
    importlib.import_module("segserve_builder.steps.cascade")
    fake = ModuleType("segserve_builder.steps.postprocess")
    fake.Postprocess, fake.request_from_parameters = FakePostprocess, fake_request
    fake.slice_of_parameters = slice_of_parameters
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


COIN = ModelClass(id=1, name="coin")
TWO_CLASSES = PIPELINE.model_copy(update={"classes": (*PIPELINE.classes, COIN)})
IMAGE_STATISTICS = ImageStatistics(0.5, 0.4, 0.02, 0.5, 0.5)
GEOMETRY = np.array(ResizeTransform.of(3, 4).to_numbers(), np.int32)
OWN = f"model=coins,revision={TWO_CLASSES.revision}"


def counting_post() -> Any:
    return shim("post", PostOptions.of(TWO_CLASSES, IO, metrics=COUNTED))


def measured(parameters: str = "{}", request_id: str = "") -> FakeRequest:
    inputs = {
        "NETWORK_OUTPUT_y": np.ones((1, 2, 3, 4), np.float32),
        "GEOMETRY": np.concatenate([GEOMETRY, Measures(IMAGE_STATISTICS, 1.0, 1.25, 0.0).to_numbers()]),
    }
    return FakeRequest(inputs, ["SIZE"], parameters, request_id)


def test_answers_are_counted_and_failed_requests_and_tests_by_agents_are_not(log: list[str]) -> None:
    post = counting_post()

    responses = post.execute(
        [measured(), measured(parameters='{"nonsense": 1}'), measured(request_id=AGENT_REQUEST_ID), measured()]
    )
    post.finalize()

    assert [response.error and response.error.code for response in responses] == [None, "INVALID_ARG", None, None]
    assert FakeMetricFamily.sums["segserve_answers_total", OWN] == 2
    assert FakeMetricFamily.sums["segserve_image_pixels_sum", OWN] == 2 * 3 * 4
    assert FakeMetricFamily.sums["segserve_step_seconds_sum", f"{OWN},step=pre"] == 2 * 0.25
    assert log == []


@pytest.mark.parametrize(
    ("parameters", "label"),
    [
        ('{"x-segserve-slice": "north"}', "north"),
        ('{"X-Segserve-Slice": "north", "segserve_slice": "south"}', "north"),
        ('{"segserve_slice": "south"}', "south"),
        ('{"segserve_slice": "elsewhere"}', "other"),
        ('{"x-segserve-slice": "caf\udce9"}', "other"),
        ("{}", "other"),
    ],
)
def test_a_request_counts_for_the_slice_that_its_header_names_or_its_parameter(
    parameters: str, label: str, log: list[str]
) -> None:
    sliced = COUNTED.model_copy(update={"slices": ("north", "south")})
    pipeline = TWO_CLASSES.model_copy(update={"model": f"sliced{len(parameters)}"})
    post = shim("post", PostOptions.of(pipeline, IO, metrics=sliced))

    (response,) = post.execute([measured(parameters)])
    post.finalize()

    assert response.error is None
    of_slice = f"model={pipeline.model},revision={pipeline.revision},slice={label}"
    assert FakeMetricFamily.sums["segserve_answers_total", of_slice] == 1
    assert log == []


def test_an_answer_that_cannot_be_counted_is_answered_and_the_log_says_why(log: list[str]) -> None:
    post, request = counting_post(), measured()
    request.inputs_by_name["GEOMETRY"] = GEOMETRY

    (response,) = post.execute([request])
    post.finalize()

    assert response.arrays()["SIZE"].tolist() == [3, 4]
    assert "Measures" in log[0]


def judging_post(on_flag: Literal["Count", "Flag", "Refuse"], threshold: float) -> Any:
    """Return the step of a model whose answers are sure to one half, so that each image's score is 0.5."""
    policy = OutOfDistributionPolicy(score="maxSoftmax", threshold=threshold, on_flag=on_flag)
    pipeline = TWO_CLASSES.model_copy(update={"out_of_distribution": policy})
    return shim("post", PostOptions.of(pipeline, IO, metrics=COUNTED))


def judged(name: str, **labels: str) -> float:
    """Return a metric's sum over the judging models' revisions."""
    wanted = [f"{key}={value}" for key, value in labels.items()]
    found = [value for (each, told), value in FakeMetricFamily.sums.items() if each == name]
    by_label = [
        value
        for (each, told), value in FakeMetricFamily.sums.items()
        if each == name and all(part in told.split(",") for part in wanted)
    ]
    return sum(by_label if labels else found)


@pytest.mark.parametrize(("threshold", "flagged"), [(0.4, 1), (0.6, 0)])
def test_a_model_that_flags_says_score_and_threshold_and_counts(log: list[str], threshold: float, flagged: int) -> None:
    post, request = judging_post("Flag", threshold), measured()
    request.wanted = ["SIZE", "OUT_OF_DISTRIBUTION"]

    (response,) = post.execute([request])
    post.finalize()

    assert response.arrays()["OUT_OF_DISTRIBUTION"].tolist() == pytest.approx([0.5, threshold])
    assert judged("segserve_out_of_distribution_total") == flagged
    assert judged("segserve_out_of_distribution_margin_bucket", le="0") == 1 - flagged
    assert judged("segserve_out_of_distribution_margin_count") == 1
    assert judged("segserve_answers_total") == 1


def test_a_model_that_judges_the_images_detail_refuses_one_of_more(log: list[str]) -> None:
    most = IMAGE_STATISTICS.detail / 2
    policy = OutOfDistributionPolicy(score="detail", threshold=most, on_flag="Refuse")
    pipeline = TWO_CLASSES.model_copy(update={"out_of_distribution": policy})

    (refused,) = shim("post", PostOptions.of(pipeline, IO, metrics=COUNTED)).execute([measured()])

    assert refused.error.code == "INVALID_ARG"
    assert f"detail is {IMAGE_STATISTICS.detail:.4g}, allowed is at most {most:.4g}" in refused.error.message


def test_a_model_that_refuses_tells_the_score_and_still_passes_the_tests_of_its_agent(log: list[str]) -> None:
    post = judging_post("Refuse", 0.4)

    refused, tested = post.execute([measured(), measured(request_id=AGENT_REQUEST_ID)])
    post.finalize()

    assert refused.error.code == "INVALID_ARG"
    assert "maxSoftmax is 0.5, allowed is at most 0.4" in refused.error.message
    assert tested.error is None
    assert judged("segserve_out_of_distribution_total") == 1
    assert judged("segserve_answers_total") == 0


def test_a_score_is_judged_in_the_precision_that_callers_are_told_it_in(log: list[str]) -> None:
    post, request = judging_post("Refuse", 0.5 - 1e-9), measured()
    request.wanted = ["SIZE", "OUT_OF_DISTRIBUTION"]

    (response,) = post.execute([request])
    post.finalize()

    assert response.error is None
    assert judged("segserve_out_of_distribution_total") == 0


def test_a_header_of_any_bytes_hides_no_other_parameter(log: list[str]) -> None:
    parameters = '{"x-segserve-slice": "caf\udce9", "nonsense": 1}'

    (response,) = counting_post().execute([measured(parameters)])

    assert "parameter 'nonsense' is not allowed" in response.error.message


def test_a_server_that_keeps_no_metrics_answers(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeMetricFamily, "refuses", True)
    post = counting_post()

    (response,) = post.execute([measured()])
    post.finalize()

    assert response.error is None
    assert "metrics are off" in log[0]


def test_processes_of_a_revision_sum_in_one_series(log: list[str]) -> None:
    posts = [counting_post(), counting_post()]
    for post in posts:
        post.execute([measured()] * 3)
    for post in posts:
        post.finalize()

    assert FakeMetricFamily.sums["segserve_answers_total", OWN] == 6


def test_the_first_step_tells_brightness_times_and_its_first_request(log: list[str]) -> None:
    pre = shim("pre", PreOptions.of(PIPELINE, IO, measures=True))
    pixels = FakeRequest({"PIXELS": np.full((300, 400, 1), 51, np.uint8)})

    geometries = [response.arrays()["GEOMETRY"] for response in pre.execute([pixels, pixels])]

    first, second = (Measures.from_geometry(each) for each in geometries)
    assert (first.image.brightness, first.first, second.first) == (pytest.approx(0.2), 1, 0)
    assert first.started_s <= first.ended_s <= second.started_s <= second.ended_s
    assert ResizeTransform.from_numbers(geometries[0]) == ResizeTransform.of(300, 400)
    assert geometries[0].dtype == np.int32


class FakeInferenceRequest:
    """Asks a heavy network that answers with its own SIZE, or refuses images of one byte."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **given: Any) -> None:
        assert all(isinstance(value, bool | int | str) for value in given["parameters"].values()), "as Triton has it"
        self.given = given

    def request_id(self) -> str:
        return str(self.given["request_id"])

    def exec(self) -> Any:
        self.asked.append(self.given)
        if len(self.given["inputs"][0].as_numpy()[0]) == 1:
            refused = SimpleNamespace(
                message=lambda: "in ensemble 'segserve--heavy--0', no image", code=lambda: FakeError.INVALID_ARG
            )
            return SimpleNamespace(has_error=lambda: True, error=lambda: refused)
        tensors = [FakeTensor("SIZE", np.array([7, 7], np.int32))]
        return SimpleNamespace(has_error=lambda: False, output_tensors=lambda: tensors)


@pytest.fixture
def cascade(log: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The last step of a light network whose answers of coins are not enough."""
    fake = sys.modules["triton_python_backend_utils"]
    monkeypatch.setattr(FakeInferenceRequest, "asked", [])
    fake.InferenceRequest, fake.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FakeInferenceRequest, 1
    light = LightNetwork(artifact_sha256="b" * 64, family="semantic-logits")
    rule = Cascade(light=light, when="class", classes=(1,), threshold=0.5)
    options = PostOptions.of(TWO_CLASSES, IO, metrics=COUNTED)
    heavy = HeavyOptions(cascade=rule, model="segserve--heavy--0", max_requests=1, max_queue_size=3)
    return shim("post", options.model_copy(update={"heavy": heavy}))


def seen(coin: bool, image: bytes = b"image", parameters: str = "{}", request_id: str = "") -> FakeRequest:
    """A request whose image shows a coin to the light network, or none."""
    request = measured(parameters, request_id)
    logits = np.zeros((1, 2, 3, 4), np.float32)
    logits[0, int(coin)] = 9
    tensors = {**request.inputs_by_name, "NETWORK_OUTPUT_y": logits, **encoded(image).inputs_by_name}
    return replace(request, inputs_by_name=tensors)


def sizes(*requests: FakeRequest) -> list[list[int]]:
    return [response.arrays()["SIZE"].tolist() for request in requests for response in request.sent]


def test_a_light_answer_that_is_enough_is_given_and_else_the_heavy_network_is_asked(cascade: Any) -> None:
    requests = [seen(coin=False), seen(coin=True, parameters='{"encoding": "rle"}', request_id="order-1")]

    assert cascade.execute(requests) == [None, None]
    cascade.finalize()

    assert sizes(*requests) == [[3, 4], [7, 7]]
    (asked,) = FakeInferenceRequest.asked
    assert (asked["model_name"], asked["request_id"]) == ("segserve--heavy--0", "order-1")
    assert (asked["parameters"], asked["requested_output_names"]) == ({"encoding": "rle"}, ["SIZE"])
    assert [tensor.name for tensor in asked["inputs"]] == ["IMAGE"]


def test_numbers_reach_the_heavy_network_as_text_where_triton_takes_none(cascade: Any) -> None:
    request = seen(coin=True, parameters='{"score_threshold": 0.25, "max_detections": 5}')

    cascade._heavy.send([request], [None])
    cascade.finalize()

    assert FakeInferenceRequest.asked[0]["parameters"] == {"score_threshold": "0.25", "max_detections": 5}


def test_requests_are_counted_by_the_network_that_answers_and_the_light_ones_as_answers(cascade: Any) -> None:
    cascade.execute([seen(coin=False), seen(coin=True), seen(coin=True), seen(coin=True, request_id=AGENT_REQUEST_ID)])
    cascade.finalize()

    assert FakeMetricFamily.sums["segserve_cascade_answers_total", f"{OWN},tier=light"] == 1
    assert FakeMetricFamily.sums["segserve_cascade_answers_total", f"{OWN},tier=heavy"] == 2
    assert FakeMetricFamily.sums["segserve_answers_total", OWN] == 1


def test_an_error_of_the_heavy_network_is_the_callers_and_harms_no_other(cascade: Any) -> None:
    bad, good = seen(coin=True, image=b"x"), seen(coin=True)

    cascade.execute([bad, good])
    cascade.finalize()

    assert [(response.error.message, response.error.code) for response in bad.sent] == [("no image", "INVALID_ARG")]
    assert sizes(good) == [[7, 7]]


def test_requests_beyond_the_heavy_networks_queue_are_refused_and_light_answers_go_on(
    cascade: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_answer, answer = threading.Event(), FakeInferenceRequest.exec

    def slow(call: FakeInferenceRequest) -> Any:
        may_answer.wait(30)
        return answer(call)

    monkeypatch.setattr(FakeInferenceRequest, "exec", slow)
    taken, refused, light = [seen(coin=True) for _ in range(4)], seen(coin=True), seen(coin=False)

    cascade.execute([*taken, refused, light])
    (response,) = refused.sent
    assert (response.error.code, sizes(light)) == ("UNAVAILABLE", [[3, 4]])
    assert response.error.message == "3 requests wait for the heavy network already (runtime.maxQueueSize)"
    may_answer.set()
    cascade.finalize()
    assert sizes(*taken) == [[7, 7]] * 4


def test_an_agent_asks_either_network_alone_and_a_caller_may_not(cascade: Any) -> None:
    heavy = seen(coin=False, parameters='{"cascade": "heavy"}', request_id=AGENT_REQUEST_ID)
    light = seen(coin=True, parameters='{"cascade": "light"}', request_id=AGENT_REQUEST_ID)
    caller = seen(coin=False, parameters='{"cascade": "heavy"}')

    cascade.execute([heavy, light, caller])
    cascade.finalize()

    assert sizes(heavy, light) == [[7, 7], [3, 4]]
    assert FakeInferenceRequest.asked[0]["parameters"] == {}
    assert "parameter 'cascade' is not allowed" in caller.sent[0].error.message
