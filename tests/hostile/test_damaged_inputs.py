"""A stranger's bytes are a value or the reader's own error: never another exception, an endless read or a dead process.

Each reader gets what is right with a few bytes changed, which passes more of its checks than random bytes do.
`make fuzz` draws new changes.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from raw_inference import PROTOCOLS
from segserve.calls.answers import read_model_info, read_result
from segserve.errors import SegserveError
from segserve.results.result import SemanticResult
from segserve_builder.agent.protocol import ModelReport, ModelState, read_reports
from segserve_builder.comparator.worker import ExchangedPair, compare_answers
from segserve_builder.copies.bodies import WireBody
from segserve_builder.copies.copies import MODEL_INFER, read_copy
from segserve_builder.copies.http_server import ReceivedRequest
from segserve_builder.errors import BuilderError, GoldenError
from segserve_builder.golden import judging
from segserve_builder.imaging.decoding import decode_image
from segserve_builder.sources import archives
from segserve_builder.steps.onnx_signature import read_signature
from segserve_common.kserve import Tensor, decode_http
from segserve_common.kube.shards import pack, unpack
from segserve_operator.adapters.kube.pods import read_report
from segserve_operator.adapters.samples import wire
from segserve_operator.adapters.traffic.plans import dump_plan, load_plan
from segserve_operator.api.documents import SpecError
from segserve_operator.api.loading import load
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

EXAMPLES = Path(__file__).parents[2] / "examples" / "coins"
MAX_BYTES = 2**20
NUMBERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
"""Where sizes and counts of all widths begin and end."""
UID = "0a1b2c3d"
COINS_INFO = read_model_info(
    "coins", ["LABELS", "MASKS", "SIZE"], {"classes": '[{"id":0,"name":"a"},{"id":1,"name":"b"}]'}
)


@dataclass(frozen=True)
class Reader:
    """A reader of a stranger's bytes, bytes that it accepts, and what it raises for others."""

    read: Callable[[bytes], object]
    samples: Callable[[], list[bytes]]
    errors: tuple[type[Exception], ...]


@contextmanager
def as_file(data: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        yield path


def archive_reader(name: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> None:
        with as_file(data, name) as path:
            into = path.parent / "into"
            into.mkdir()
            archives.unpack(path, name, into, MAX_BYTES)
            written = [found for found in path.parent.rglob("*") if found.is_file()]
            assert all(found == path or into in found.parents for found in written)
            assert sum(found.stat().st_size for found in written if found != path) <= MAX_BYTES

    return read


def zip_sample() -> list[bytes]:
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("golden.json", b"{}" * 50)
        made.writestr("images/a.png", b"a" * 300)
    return [into.getvalue()]


def tar_sample(mode: str) -> list[bytes]:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode=mode) as made:  # type: ignore[call-overload]
        for name in ("golden.json", "images/a.png"):
            member = tarfile.TarInfo(name)
            member.size = 300
            made.addfile(member, io.BytesIO(b"a" * 300))
    return [into.getvalue()]


def pictures() -> list[bytes]:
    samples = []
    for name, options in (("JPEG", {"progressive": True}), ("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {})):
        into = io.BytesIO()
        Image.linear_gradient("L").resize((40, 30)).save(into, name, **options)
        samples.append(into.getvalue())
    return samples


def read_network(data: bytes) -> None:
    with as_file(data, "model.onnx") as path:
        read_signature(path)


def network() -> bytes:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1, "h", "w"]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return content


def read_golden_set(data: bytes) -> None:
    with as_file(data, judging.GOLDEN_FILE) as path:
        (path.parent / "coins.png").write_bytes(b"")
        for case in judging.load(path.parent).cases:
            with suppress(GoldenError):  # the answer is not the expected one
                judging.compare(case, answer_of(case))


def answer_of(case: judging.Case) -> dict[str, np.ndarray]:
    """Return an answer of the case's size and of as many objects, as a model in debt to nobody would."""
    count = len(case.expected.classes)
    full = f"0{''.join(_digits(case.expected.size[0] * case.expected.size[1]))}".encode()
    return {
        "SIZE": np.array(case.expected.size),
        "CLASSES": np.array(case.expected.classes),
        "MASKS": np.array([full] * count, object),
        "SCORES": np.array(case.expected.scores or (), float),
        "BOXES": np.array(case.expected.boxes or (), float).reshape(-1, 4),
    }


def _digits(number: int) -> Iterator[str]:
    """Yield COCO's characters of a count: five bits each, the sign in the last."""
    more = True
    while more:
        bits, number = number & 0x1F, number >> 5
        more = number != (-1 if bits & 0x10 else 0)
        yield chr((bits | 0x20 if more else bits) + 48)


def read_answer(data: bytes) -> None:
    header, newline, _ = data.partition(b"\n")
    result = read_result(decode_http(data, str(len(header) + len(newline))), COINS_INFO)
    for annotation in result.annotations():  # masks are decoded when they are asked for
        assert annotation.mask is None or annotation.mask.bitmap.shape == result.size
    if isinstance(result, SemanticResult):
        assert result.labels.shape == result.size


def answers() -> list[bytes]:
    """Return semantic answers with a label map and with masks, and one of instances, as Triton frames them."""
    png = io.BytesIO()
    Image.linear_gradient("L").resize((8, 6)).point(lambda value: value // 128).save(png, "PNG")
    masks = [b"0`1", b"`1"]
    two = {"CLASSES": np.array([0, 1], "<i4")}
    semantic = {"AREAS": np.array([24, 24], "<i8"), **two}
    return [
        framed({"LABELS": [png.getvalue()], "MASKS": []}, semantic),
        framed({"LABELS": [], "MASKS": masks}, semantic),
        framed({"MASKS": masks}, {"SCORES": np.ones(2, "<f4"), "BOXES": np.ones((2, 4), "<f4"), **two}),
    ]


def framed(texts: dict[str, list[bytes]], numbers: dict[str, np.ndarray]) -> bytes:
    tensors = [Tensor.of_items(name, items) for name, items in {"REVISION": [b"coins-a"], **texts}.items()]
    tensors += [Tensor.of_array(name, array) for name, array in {"SIZE": np.array([6, 8], "<i4"), **numbers}.items()]
    outputs = [
        {"name": each.name, "datatype": each.datatype, "shape": each.shape}
        | {"parameters": {"binary_data_size": len(each.raw)}}
        for each in tensors
    ]
    header = json.dumps({"model_name": "m", "model_version": "1", "id": "7", "outputs": outputs}).encode()
    return b"".join([header, b"\n", *(each.raw for each in tensors)])


def read_copied_request(data: bytes) -> None:
    """Read what is a body over HTTP as well as a gRPC frame, which says how long it is."""
    frame = b"\0" + len(data).to_bytes(4, "big") + data
    for target, body in ((f"{MODEL_INFER}?a", frame), ("/v2/models/coins/infer", data)):
        copy = read_copy(ReceivedRequest("POST", target, {}, body))
        assert copy is None or len(copy.body) == len(data)


def copied_requests() -> list[bytes]:
    message = pb.ModelInferRequest(model_name="coins", raw_input_contents=[b"\1\0\0\0a"], id="7")
    message.inputs.add(name="IMAGE", datatype="BYTES", shape=[1])
    message.parameters["threshold"].double_param = 0.5
    content: bytes = message.SerializeToString()
    return [content]


def compare_with_itself(data: bytes) -> None:
    header, newline, _ = data.partition(b"\n")
    answer = WireBody(data, str(len(header) + len(newline)))
    for protocol in PROTOCOLS:
        pair = ExchangedPair(protocol, 0.0, WireBody(b"{}"), answer, answer)
        found = compare_answers(pair, keep_below=1.0)
        assert found.agreement is None or 0.0 <= found.agreement <= 1.0


def plan_sample() -> list[bytes]:
    servers = (Endpoint("10.0.0.1", 8000, 8001), Endpoint("10.0.0.2", 8000, 8001))
    share = Share("main-0a1b2c3d", "coins-aaaaaaaaaa", 100, servers)
    plan = dump_plan(TrafficPlan((Route("coins", (share,), steps=("segserve--pre--1",)),), servers))
    return [json.dumps(plan).encode()]


def agent_report_sample() -> list[bytes]:
    model = ModelReport(model="coins", revision="coins-aaaaaaaaaa", state=ModelState.READY)
    return [json.dumps([model.to_json()]).encode()]


def gateway_report_sample() -> list[bytes]:
    return [json.dumps({"uid": UID, "shards": {"0": "aa"}, "refused": {"0": "why"}, "draining": [["a", "b"]]}).encode()]


def read_gateway_report(data: bytes) -> None:
    """Read a report that a pod packed by itself, of whatever JSON."""
    try:
        packed = pack(json.loads(data))
    except (ValueError, RecursionError):
        return
    report = read_report(packed, {"metadata": {"name": "a", "uid": UID}})
    assert report is None or all(isinstance(version, str) for version in report.shards.values())


READERS = {
    "a zip": Reader(archive_reader("a.zip"), zip_sample, (BuilderError,)),
    "a tar": Reader(archive_reader("a.tar"), lambda: tar_sample("w"), (BuilderError,)),
    "a tar.gz": Reader(archive_reader("a.tar.gz"), lambda: tar_sample("w:gz"), (BuilderError,)),
    "a tar.xz": Reader(archive_reader("a.tar.xz"), lambda: tar_sample("w:xz"), (BuilderError,)),
    "an image": Reader(
        lambda data: decode_image(data, colour="GREY", dtype="UINT8", max_pixels=10_000), pictures, (BuilderError,)
    ),
    "a network": Reader(read_network, lambda: [network()], (BuilderError,)),
    "a golden set": Reader(
        read_golden_set,
        lambda: [(EXAMPLES / "golden" / name / "golden.json").read_bytes() for name in ("semantic", "instances")],
        (BuilderError,),
    ),
    "a resource": Reader(
        lambda data: load(data.decode(errors="replace"), "m.yaml"),
        lambda: [(EXAMPLES / "model.yaml").read_bytes()],
        (SpecError,),
    ),
    "a shard": Reader(
        lambda data: unpack(data.decode("latin-1")), lambda: [pack({"models": [{"a": 1}] * 9}).encode()], (ValueError,)
    ),
    "an agent's report": Reader(
        lambda data: read_reports(json.loads(data)), agent_report_sample, (ValueError, TypeError)
    ),
    "a gateway's report": Reader(read_gateway_report, gateway_report_sample, ()),
    "a gateway's counts": Reader(
        lambda data: wire.decode(data, 0.0),
        lambda: [b'{"coins":{"epoch":"e","age":1.5,"tallies":[["main","http",9,1,0,2,[[0.001,7],[0.01,2]],0,0]]}}'],
        (ValueError,),
    ),
    "a plan": Reader(lambda data: load_plan(json.loads(data)), plan_sample, (ValueError,)),
    "an answer": Reader(read_answer, answers, (SegserveError,)),
    "a copied request": Reader(read_copied_request, copied_requests, ()),
    "an answer that is compared": Reader(compare_with_itself, answers, ()),
}


@cache
def samples(kind: str) -> list[bytes]:
    return READERS[kind].samples()


@st.composite
def damaged(draw: st.DrawFn, kind: str) -> bytes:
    """Draw a sample with one to six changes: bytes set, added, removed or repeated, numbers at their limits."""
    data = bytearray(draw(st.sampled_from(samples(kind))))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 60]))
        change = draw(st.sampled_from(["set", "insert", "remove", "repeat", "number", "digit", "cut"]))
        if change == "set":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif change == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=length))
        elif change == "remove":
            del data[at : at + length]
        elif change == "repeat":
            data[at:at] = data[at : at + length] * draw(st.sampled_from([1, 2, 50]))
        elif change == "number":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            number = draw(st.sampled_from(NUMBERS)) & (2 ** (8 * width) - 1)
            data[at : at + width] = number.to_bytes(width, draw(st.sampled_from(["little", "big"])))
        elif change == "digit":
            places = [place for place, byte in enumerate(data) if chr(byte).isdigit()] or [at]
            at = draw(st.sampled_from(places))
            data[at : at + 1] = draw(
                st.sampled_from([b"-1", b"1e999", b"NaN", b"null", b"[]", b'"x"', b"9" * 30, b"{}"])
            )
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("kind", READERS)
def test_what_is_right_is_read(kind: str) -> None:
    for sample in samples(kind):
        READERS[kind].read(sample)


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_what_was_tampered_with_is_read_or_refused_by_the_readers_own_error(kind: str, data: st.DataObject) -> None:
    reader = READERS[kind]
    given_bytes = data.draw(damaged(kind))
    try:
        reader.read(given_bytes)
    except reader.errors:
        return
