"""The capture service: what it takes, drops and writes, with the real process that makes samples."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segserve_builder.capture.rule import RULES, CaptureFolder, CaptureRule, RedactionRule
from segserve_builder.capture.service import MAX_WAITING, MAX_WRITES, CaptureService, worker_environment
from segserve_builder.capture.store import SampleStore, StoredSample
from segserve_builder.copies.copies import FrameWorker, RequestCopy
from segserve_builder.copies.groups import Answer, AnswerKind
from segserve_builder.copies.http_server import ByteBudget, ReceivedRequest
from segserve_builder.errors import SinkError
from segserve_builder.sources.access import LOCAL
from segserve_common.kserve import HEADER_LENGTH, InferRequest, Parameter, Tensor, encode_http, json_object

CANARY = b"canary-4711"
HANG_S = 60.0
BUDGET = 2**20


def rule(sink: str, **fields: Any) -> CaptureRule:
    return CaptureRule(
        **{"group": "main", "revision": "coins-1", "share": 1.0, "per_minute": 600, "sink": sink, "threshold": 0.5}
        | {"retention_s": 3600.0, "max_pixels": 10_000, **fields}
    )


def photo() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = CANARY.decode()
    written = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(written, "JPEG", exif=exif)
    return written.getvalue()


def request(
    content: bytes = photo(),
    request_id: str = "id-1",
    parameters: Mapping[str, Parameter] = MappingProxyType({}),
    model: str = "coins",
) -> ReceivedRequest:
    image = Tensor.of_items("IMAGE", [content])
    stated, body = encode_http(InferRequest(model, (image,), parameters={"note": CANARY.decode(), **parameters}))
    named = {"x-request-id": request_id, "authorization": CANARY.decode()}
    lower = {name.lower(): value for name, value in stated.items()}
    return ReceivedRequest("POST", f"/v2/models/{model}/infer", {**lower, **named}, body)


def answered(boxes: Sequence[Sequence[int]] = ((1, 1, 9, 9),)) -> Answer:
    outputs = (
        Tensor.of_array("SIZE", np.array([16, 16], np.int32)),
        Tensor.of_array("CLASSES", np.array([0] * len(boxes), np.int32)),
        Tensor.of_array("SCORES", np.array([0.9] * len(boxes), np.float32)),
        Tensor.of_array("BOXES", np.array(boxes, np.float32).reshape(-1, 4)),
    )
    headers, body = encode_http(InferRequest("coins", outputs))
    length = headers["Inference-Header-Content-Length"]
    return Answer(AnswerKind.ANSWERED, 0.1, body.replace(b'"inputs"', b'"outputs"'), str(int(length) + 1))


def noise() -> bytes:
    written = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(written, "JPEG", quality=95)
    return written.getvalue()


class Asked:
    """Groups that answer alike; it keeps what they were asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.copies: list[tuple[RequestCopy, str]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, copy: RequestCopy, group: str) -> Answer:
        self.copies.append((copy, group))
        await self.may_answer.wait()
        return self.answer


class OneFace(Asked):
    """A server that finds one object of score 0.9 as large as the image, unless it is asked for surer ones."""

    async def __call__(self, copy: RequestCopy, group: str) -> Answer:
        await super().__call__(copy, group)
        parameters = json_object(copy.body[: int(copy.header_length)])["parameters"]
        return self.answer if parameters.get("score_threshold", 0.5) <= 0.9 else answered(())


@asynccontextmanager
async def running(
    tmp_path: Path,
    asked: Asked,
    made: CaptureRule,
    open_sink: Callable[[str], Any] | None = None,
    others: Mapping[str, CaptureRule] = MappingProxyType({}),
    **limits: Any,
) -> AsyncIterator[tuple[CaptureService, ByteBudget]]:
    folder, budget = CaptureFolder(tmp_path), ByteBudget(BUDGET)
    folder.rules.write_bytes(RULES.dump_json({"coins": made, **others}))
    worker = FrameWorker("segserve_builder.capture.worker", environment=worker_environment(), timeout_s=HANG_S)
    sink = open_sink or (lambda uri: SampleStore(uri, LOCAL))
    limits = {"write_pauses_s": (0.01, 0.01), **limits}
    service = CaptureService(folder, asked, worker, budget, sink, **limits)
    service.refresh()
    task = asyncio.create_task(service.run())
    try:
        yield service, budget
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await worker.close()


def take(service: CaptureService, budget: ByteBudget, received: ReceivedRequest) -> int:
    assert received.body is not None
    assert budget.take(len(received.body))
    return service.take(received).status


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_S):
        while not met():
            await asyncio.sleep(0.02)


async def test_a_copy_becomes_a_sample_and_nothing_else_of_the_request_is_kept_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink, asked = tmp_path / "samples", Asked(answered())
    async with running(tmp_path, asked, rule(sink.as_uri())) as (service, budget):
        assert take(service, budget, request()) == 204
        await until(lambda: service.captured["coins", "share"] == 1)

        (row,) = SampleStore(sink.as_uri(), LOCAL).rows("coins")
        metrics = service.metrics()
    assert (row.request_id, row.revision, row.size) == ("id-1", "coins-1", (16, 16))
    assert budget.held == 0
    assert b'segserve_captured_samples_total{model="coins",reason="share"} 1.0' in metrics
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY in path.read_bytes()]
    assert CANARY.decode() not in caplog.text
    assert CANARY not in metrics
    # What is asked again has the image, which no server writes anywhere, and none of the caller's own parameters.
    assert asked.copies[0][0].body.count(CANARY) == photo().count(CANARY)


@pytest.mark.parametrize("model", ["", "faces"])
async def test_no_parameter_of_a_caller_uncovers_what_is_redacted(tmp_path: Path, model: str) -> None:
    sink, redact = tmp_path / "samples", {"ids": [0], "model": model, "group": "faces"}
    asked = OneFace(answered([(0, 0, 16, 16)]))
    async with running(tmp_path, asked, rule(sink.as_uri(), redact=redact)) as (service, budget):
        take(service, budget, request(parameters={"score_threshold": 0.95}))
        await until(lambda: service.captured["coins", "share"] == 1)

    store = SampleStore(sink.as_uri(), LOCAL)
    (row,) = store.rows("coins")
    with Image.open(io.BytesIO(store.image(row))) as image:
        assert np.asarray(image).max() < 30  # JPEG leaves a little noise
    # Where another model redacts, the model's own answer is the one that the caller got.
    assert row.parameters == ({"score_threshold": 0.95} if model else {})


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"1" + 400 * b"0", b"true", b'"nan"', b"[]", b"null"])
async def test_a_parameter_that_is_no_number_makes_no_sample_and_ends_nothing(tmp_path: Path, value: bytes) -> None:
    whole = request(parameters={"score_threshold": 0.75})
    assert whole.body is not None
    length = int(whole.headers[HEADER_LENGTH.lower()])
    header = whole.body[:length].replace(b"0.75", value)
    headers = {**whole.headers, HEADER_LENGTH.lower(): str(len(header))}
    async with running(tmp_path, Asked(answered()), rule((tmp_path / "samples").as_uri())) as (service, budget):
        take(service, budget, replace(whole, headers=headers, body=header + whole.body[length:]))
        await until(lambda: service.dropped["coins", "unreadable"] == 1)
        take(service, budget, request(parameters={"score_threshold": "0.75"}))
        await until(lambda: service.captured["coins", "share"] == 1)

    (row,) = SampleStore((tmp_path / "samples").as_uri(), LOCAL).rows("coins")
    assert row.parameters == {"score_threshold": 0.75}


async def test_an_error_that_nobody_expects_costs_one_sample(tmp_path: Path) -> None:
    class Broken(Asked):
        async def __call__(self, copy: RequestCopy, group: str) -> Answer:
            if not self.copies:
                self.copies.append((copy, group))
                raise RuntimeError("a defect")
            return self.answer

    async with running(tmp_path, Broken(answered()), rule((tmp_path / "samples").as_uri())) as (service, budget):
        take(service, budget, request())
        take(service, budget, request())
        await until(lambda: service.captured["coins", "share"] == 1)
        assert (service.dropped["coins", "failed"], budget.held) == (1, 0)


@pytest.mark.parametrize("stated", ["Jane Doe <jane@example.com>", "tenant/7+a=", "Zo\u00eb", "x" * 300])
async def test_an_id_that_is_no_plain_id_is_not_kept_and_finds_its_sample(tmp_path: Path, stated: str) -> None:
    sink, on_the_wire = tmp_path / "samples", stated.encode().decode("latin-1")
    async with running(tmp_path, Asked(answered()), rule(sink.as_uri())) as (service, budget):
        take(service, budget, request(request_id=on_the_wire))
        await until(lambda: service.captured["coins", "share"] == 1)

    store = SampleStore(sink.as_uri(), LOCAL)
    assert [row.request_id for row in store.rows("coins")] == [""]
    assert store.delete("coins", request_id=stated) == 3
    assert not [path for path in sink.rglob("*") if path.is_file()]


async def test_more_copies_than_may_wait_are_dropped_and_their_bytes_given_back(tmp_path: Path) -> None:
    asked = Asked(answered())
    asked.may_answer.clear()
    async with running(tmp_path, asked, rule((tmp_path / "samples").as_uri())) as (service, budget):
        for number in range(MAX_WAITING + 5):
            take(service, budget, request(request_id=f"id-{number}"))
        assert service.dropped["coins", "queue"] == 5
        held = budget.held
        asked.may_answer.set()
        # A sample that is ready while `MAX_WRITES` others are written is dropped as well.
        await until(lambda: service.captured["coins", "share"] + service.dropped["coins", "sink"] == MAX_WAITING)
        assert (held > 0, budget.held) == (True, 0)


async def test_a_body_that_was_too_long_is_counted_and_no_sample(tmp_path: Path) -> None:
    async with running(tmp_path, Asked(answered()), rule((tmp_path / "samples").as_uri())) as (service, _):
        cut = request()
        assert service.take(ReceivedRequest(cut.method, cut.target, cut.headers, None)).status == 204
        assert service.dropped["coins", "bytes"] == 1


@pytest.mark.parametrize(
    ("fields", "answer", "cause"),
    [
        pytest.param({"slices": ("camera-7",)}, answered(), "slice", id="another slice"),
        pytest.param({"when": ("empty",)}, answered(), "unremarkable", id="no reason"),
        pytest.param({"per_minute": 0}, answered(), "perMinute", id="enough this minute"),
        pytest.param({}, Answer(AnswerKind.UNREACHED, 0.1), "unreached", id="no gateway"),
        pytest.param({"when": ("error",)}, Answer(AnswerKind.ANSWERED, 0.1), "unreadable", id="too large an answer"),
        pytest.param({}, Answer(AnswerKind.ANSWERED, 0.1, b"{", ""), "unreadable", id="an answer that is none"),
        pytest.param(
            {"redact": {"ids": [1], "model": "faces", "group": "main"}, "when": ("error",)},
            Answer(AnswerKind.FAILED, 0.1),
            "redaction",
            id="nobody says what to redact",
        ),
    ],
)
async def test_what_becomes_no_sample_is_counted_with_its_cause(
    tmp_path: Path, fields: dict[str, Any], answer: Answer, cause: str
) -> None:
    sink = tmp_path / "samples"
    async with running(tmp_path, Asked(answer), rule(sink.as_uri(), **fields)) as (service, budget):
        take(service, budget, request())
        await until(lambda: service.dropped["coins", cause] == 1)
        assert budget.held == 0
    assert not [path for path in sink.rglob("*") if path.is_file()]


async def test_a_model_that_hangs_keeps_no_other_one_waiting(tmp_path: Path) -> None:
    class Hung(Asked):
        async def __call__(self, copy: RequestCopy, group: str) -> Answer:
            return await super().__call__(copy, group) if group == "hung" else self.answer

    asked, sink = Hung(answered()), (tmp_path / "samples").as_uri()
    asked.may_answer.clear()
    async with running(tmp_path, asked, rule(sink), others={"cells": rule(sink, group="hung")}) as (service, budget):
        for _ in range(MAX_WAITING + 1):
            take(service, budget, request(model="cells"))
        await until(lambda: bool(asked.copies))
        take(service, budget, request())
        await until(lambda: service.captured["coins", "share"] == 1)
    assert not service.captured["cells", "share"]


class SlowStore:
    """Fails each write as long as it is `away`; writes wait while it does `not answer`."""

    def __init__(self) -> None:
        self.away = threading.Event()
        self.answers = threading.Event()
        self.answers.set()
        self.tries = 0
        self.written: list[StoredSample] = []

    def write(self, sample: StoredSample) -> None:
        self.tries += 1
        self.answers.wait(HANG_S)
        if self.away.is_set():
            raise SinkError("the store is away")
        self.written.append(sample)

    def delete(self, model: str, *, before_s: float | None = None, request_id: str | None = None) -> int:
        return 0


async def test_a_store_that_does_not_answer_keeps_no_other_one_waiting(tmp_path: Path) -> None:
    dead, good = SlowStore(), SlowStore()
    dead.answers.clear()
    others = {f"cells-{number}": rule("s3://dead/x") for number in range(9)}
    stores = {"s3://dead/x": dead, "s3://good/x": good}
    async with running(tmp_path, Asked(answered()), rule("s3://good/x"), stores.__getitem__, others) as (
        service,
        budget,
    ):
        try:
            for model in others:
                for _ in range(MAX_WRITES + 1):
                    take(service, budget, request(model=model))
            # More calls than there are threads: the store is asked for only a few of them at once.
            await until(lambda: all(service.dropped[model, "sink"] == 1 for model in others))
            take(service, budget, request())
            await until(lambda: service.captured["coins", "share"] == 1)
            assert (len(good.written), dead.written) == (1, [])
        finally:
            dead.answers.set()


async def test_samples_that_wait_for_a_store_have_no_more_bytes_than_allowed(tmp_path: Path) -> None:
    away = SlowStore()
    away.away.set()
    limits = {"write_pauses_s": (HANG_S,), "writing_bytes": 6000}
    async with running(tmp_path, Asked(answered()), rule("s3://x/y"), lambda _: away, **limits) as (service, budget):
        for _ in range(MAX_WRITES):
            take(service, budget, request(noise()))
        await until(lambda: service.dropped["coins", "sink"] == MAX_WRITES - 1)
        assert (away.tries, budget.held) == (1, 0)


@pytest.mark.parametrize("change", [{}, {"redact": RedactionRule(ids=(0,))}, {"sink": "s3://other/x"}])
async def test_a_sample_that_waits_for_its_store_is_not_written_by_a_rule_of_before(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    store, made = SlowStore(), rule("s3://x/y")
    store.away.set()
    async with running(tmp_path, Asked(answered()), made, lambda _: store, write_pauses_s=(0.01,) * 5000) as (
        service,
        budget,
    ):
        take(service, budget, request())
        await until(lambda: store.tries > 0)
        rules = {"coins": made.model_copy(update=change)} if change else {}
        CaptureFolder(tmp_path).rules.write_bytes(RULES.dump_json(rules))
        service.refresh()
        await until(lambda: service.dropped["coins", "ended"] == 1)


async def test_a_store_that_fails_is_tried_again_and_its_samples_then_dropped(tmp_path: Path) -> None:
    store = SlowStore()
    store.away.set()
    async with running(tmp_path, Asked(answered()), rule("file:///x"), lambda _: store) as (service, budget):
        take(service, budget, request())
        await until(lambda: service.dropped["coins", "sink"] == 1)
    assert store.tries == 3


async def test_what_is_older_than_its_retention_is_deleted(tmp_path: Path) -> None:
    sink = tmp_path / "samples"
    async with running(tmp_path, Asked(answered()), rule(sink.as_uri())) as (service, budget):
        take(service, budget, request())
        await until(lambda: service.captured["coins", "share"] == 1)
    async with running(tmp_path, Asked(answered()), rule(sink.as_uri(), retention_s=0.0)):
        await until(lambda: not [path for path in sink.rglob("*") if path.is_file()])


async def test_without_a_rule_nothing_is_asked(tmp_path: Path) -> None:
    asked = Asked(answered())
    async with running(tmp_path, asked, rule((tmp_path / "samples").as_uri())) as (service, budget):
        CaptureFolder(tmp_path).rules.write_text("{}")
        service.refresh()
        take(service, budget, request())
    assert (asked.copies, budget.held) == ([], 0)


def test_the_process_that_reads_callers_bytes_has_no_credentials() -> None:
    given = {"AWS_SECRET_ACCESS_KEY": "x", "SEGSERVE_ARTIFACT_ACCESS": "{}", "GOOGLE_TOKEN": "x", "PATH": "/bin"}

    assert worker_environment(given) == {"PATH": "/bin"}
    assert worker_environment().keys() <= os.environ.keys()


HIDDEN = """
import ctypes, os, sys
from segserve_builder.capture.service import hide_memory

def readable():
    child = os.fork()
    if not child:
        try:
            open(f"/proc/{os.getppid()}/environ", "rb").close()
        except PermissionError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

if os.geteuid() == 0:
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
before = readable()
hide_memory()
print(before, readable())
"""


def test_another_process_of_the_same_user_cannot_read_the_services_environment() -> None:
    found = subprocess.run([sys.executable, "-c", HIDDEN], check=True, capture_output=True, text=True)

    assert found.stdout.split() == ["True", "False"]
