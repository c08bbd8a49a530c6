"""Recorded requests: what a folder says, when each request is due, and callers that do not wait for answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from fakes.waiting import HANG_S
from segserve.cli.errors import CommandError
from segserve.cli.rollout.traffic import RECORDED, RecordedCallers, RecordedRequest, Recording, read_recording
from segserve.errors import BadRequestError, ServerError
from segserve.platforms.rollouts.rehearsal import CallOutcome
from segserve.results.result import Result


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three images and a file that is none."""
    for name in ("c.png", "a.png", "b.jpg"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def recorded(folder: Path, *entries: Any) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / RECORDED).write_text("\n".join(lines))
    return folder


def test_images_are_asked_in_the_order_of_their_names_again_and_again(photos: Path) -> None:
    recording = read_recording(photos, rate=2)

    due = [(at_s, request.image.name) for at_s, request in islice(recording.due(), 5)]

    assert due == [(0.0, "a.png"), (0.5, "b.jpg"), (1.0, "c.png"), (1.5, "a.png"), (2.0, "b.jpg")]
    assert recording.requests_per_second == 2


def test_recorded_requests_keep_their_timing_and_parameters_and_repeat(photos: Path) -> None:
    parameters = {"score_threshold": 0.7, "encoding": "rle"}
    recorded(photos, {"at_s": 104, "image": "b.jpg"}, "", {"at_s": 100, "image": "a.png", "parameters": parameters})

    due = list(islice(read_recording(photos, rate=10).due(), 4))

    assert [(at_s, request.image.name) for at_s, request in due] == [
        (0.0, "a.png"),
        (4.0, "b.jpg"),
        (8.0, "a.png"),
        (12.0, "b.jpg"),
    ]
    assert due[0][1].options == parameters


def test_a_single_request_repeats_at_the_rate(photos: Path) -> None:
    recorded(photos, {"at_s": 3, "image": "a.png"})

    assert [at_s for at_s, _ in islice(read_recording(photos, rate=4).due(), 3)] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "requests.jsonl:1: not JSON"),
        ("[]", "expected an object with at_s, image and optionally parameters"),
        ({"image": "a.png"}, "expected an object with at_s, image"),
        ({"at_s": 0, "image": "a.png", "header": 1}, "expected an object with at_s, image"),
        ({"at_s": -1, "image": "a.png"}, "at_s must be seconds of at least 0, got -1"),
        ({"at_s": True, "image": "a.png"}, "at_s must be seconds"),
        ('{"at_s": Infinity, "image": "a.png"}', "at_s must be seconds"),
        ({"at_s": 0, "image": "../secret.png"}, "image must be the path of a file in"),
        ({"at_s": 0, "image": 5}, "image must be the path of a file in"),
        ({"at_s": 0, "image": "none.png"}, "none.png cannot be read: No such file or directory"),
        ({"at_s": 0, "image": "notes.txt"}, "notes.txt cannot be read: it is not an image"),
        ({"at_s": 0, "image": "a.png", "parameters": {"threshold": 1}}, "parameters must be an object of"),
        ({"at_s": 0, "image": "a.png", "parameters": {"encoding": "bmp"}}, "encoding must be one of"),
        ("", "requests.jsonl has no requests"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_allowed(photos: Path, line: Any, complaint: str) -> None:
    with pytest.raises(CommandError) as refused:
        read_recording(recorded(photos, line), rate=10)

    assert complaint in str(refused.value)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="has no images"):
        read_recording(tmp_path, rate=10)


def test_an_image_that_cannot_be_read_is_named(photos: Path) -> None:
    (photos / "d.png").write_bytes(b"no PNG")

    with pytest.raises(CommandError, match=r"d\.png cannot be read"):
        read_recording(photos, rate=10)


class Client:
    """Answers its first request only once a third one has come; the second fails, the third is refused."""

    def __init__(self) -> None:
        self.third = asyncio.Event()
        self.begun = 0
        self.enough = threading.Event()

    async def segment(self, image: object, *, model: str, **options: object) -> Result:
        self.begun += 1
        match self.begun:
            case 1:
                await self.third.wait()
                return cast("Result", SimpleNamespace(revision="coins-1"))
            case 2:
                raise ServerError("it broke", revision="coins-2")
            case 3:
                self.third.set()
                raise BadRequestError("too large", revision="coins-2")
            case _:
                self.enough.set()
                return cast("Result", SimpleNamespace(revision="coins-1"))


def opened(client: Client) -> Any:
    @asynccontextmanager
    async def gateway() -> AsyncIterator[Client]:
        yield client

    return gateway()


def test_a_slow_answer_keeps_no_other_request_back(photos: Path) -> None:
    client = Client()
    recording = Recording((RecordedRequest(0.0, photos / "a.png"),), 0.001)

    with RecordedCallers(opened(client), "coins", recording, speed=10) as callers:
        assert client.enough.wait(HANG_S)

    outcomes = {(call.revision, call.answer) for call in callers.traffic.calls}
    assert outcomes == {
        ("coins-1", CallOutcome.ANSWERED),
        ("coins-2", CallOutcome.FAILED),
        ("coins-2", CallOutcome.REFUSED),
    }


def test_an_image_that_disappears_ends_the_callers_with_its_error(photos: Path) -> None:
    requests = (RecordedRequest(0.0, photos / "gone.png"), RecordedRequest(0.0, photos / "a.png"))
    client = Client()
    client.begun = 3

    with (
        pytest.raises(FileNotFoundError),
        RecordedCallers(opened(client), "coins", Recording(requests, 3600.0), speed=1),
    ):
        assert client.enough.wait(HANG_S)
