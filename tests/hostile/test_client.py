"""A gateway that means harm to its callers: what it makes a client keep in memory, and show."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from fakes.kserve import Arrays, Asked, Gateway, Model, items
from fakes.waiting import HANG_S
from segserve import AnswerTooLargeError, AsyncClient, BadRequestError, Client, ProtocolError, SegserveError

LIMIT = 2**20
CHUNK = b"x" * 2**16
Ask = Callable[..., SegserveError]


def photo(width: int = 80, height: int = 60, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, kind)
    return buffer.getvalue()


def answer(asked: Asked, *, size: tuple[int, int] = (60, 80), labels: bytes = b"", **more: Any) -> Arrays:
    arrays = {
        "REVISION": items(b"coins-a"), "SIZE": np.array(size, np.int32), "LABELS": items(labels), "MASKS": items(),
        "CLASSES": np.array([0], np.int32), "AREAS": np.array([1], np.int64),
    }  # fmt: skip
    return arrays | more


@contextmanager
def lying(transport: Literal["http", "grpc"], **lies: Any) -> Iterator[str]:
    """Serve a model whose answers have these lies."""
    classes = json.dumps([{"id": 0, "name": lies.pop("name", "coin")}])
    outputs = ["REVISION", "SIZE", "LABELS", "MASKS", "CLASSES", "AREAS"]
    model = Model(outputs, {"revision": "coins-a", "classes": classes}, lambda asked: answer(asked, **lies))
    with getattr(Gateway({"coins": model}), transport)() as url:
        yield url


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Segment an image and return the error."""

    def by_client(url: str, image: Any = None, **options: Any) -> SegserveError:
        with Client(url, retries=0, timeout_s=HANG_S, **options) as client, pytest.raises(SegserveError) as error:
            client.segment(photo() if image is None else image, model="coins")
        return error.value

    def by_async_client(url: str, image: Any = None, **options: Any) -> SegserveError:
        async def run() -> None:
            async with AsyncClient(url, retries=0, timeout_s=HANG_S, **options) as client:
                await client.segment(photo() if image is None else image, model="coins")

        with pytest.raises(SegserveError) as error:
            asyncio.run(run())
        return error.value

    return by_client if request.param == "sync" else by_async_client


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_no_answer_is_kept_that_is_larger_than_the_caller_allows(ask: Ask, transport: Literal["http", "grpc"]) -> None:
    with lying(transport, labels=b"x" * (2 * LIMIT)) as url:
        error = ask(url, transport=transport, max_answer_bytes=LIMIT)

    assert isinstance(error, AnswerTooLargeError)
    assert f"more than the {LIMIT} that are allowed" in str(error)
    assert "allow more (max_answer_bytes)" in str(error)


class Flood:
    """An HTTP server that sends its head and then chunk after chunk, until its caller leaves; it counts the bytes."""

    def __init__(self, head: bytes, chunk: bytes) -> None:
        self._head, self._chunk = head, chunk
        self.sent_bytes = 0

    @contextmanager
    def serve(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=self._flood, args=(server,), daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
            thread.join(HANG_S)
            assert not thread.is_alive(), "the caller still listens"

    def _flood(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(HANG_S)
            connection.recv(2**16)
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\n" + self._head + b"\r\n")
                while True:
                    connection.sendall(self._chunk)
                    self.sent_bytes += len(self._chunk)
            except OSError:
                return


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize(
    "head", [b"Content-Length: 100000000000\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"]
)
def test_an_answer_without_end_is_left_at_the_bound(ask: Ask, head: bytes) -> None:
    flood = Flood(head, chunked(CHUNK) if b"chunked" in head else CHUNK)
    with flood.serve() as url:
        error = ask(url, max_answer_bytes=LIMIT)

    assert isinstance(error, AnswerTooLargeError)
    assert flood.sent_bytes < LIMIT + 2**24  # what the system's buffers of both sockets hold


def test_an_error_without_end_is_left_at_the_bound(ask: Ask) -> None:
    flood = Flood(b"Transfer-Encoding: chunked\r\nX: 1\r\n", chunked(CHUNK))
    with flood.serve() as url:
        assert isinstance(ask(url, max_answer_bytes=LIMIT), AnswerTooLargeError)


def test_a_compressed_answer_is_bounded_by_what_it_becomes(ask: Ask) -> None:
    zeros = gzip.compress(bytes(16 * LIMIT))
    flood = Flood(b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", chunked(zeros))
    with flood.serve() as url:
        error = ask(url, max_answer_bytes=LIMIT)

    assert isinstance(error, AnswerTooLargeError)


@pytest.mark.parametrize("encoding", ["gzip, gzip", "deflate", "br", "zstd"])
def test_no_compression_is_undone_that_was_not_asked_for(ask: Ask, encoding: str) -> None:
    flood = Flood(f"Content-Encoding: {encoding}\r\n".encode(), zlib.compress(bytes(LIMIT)))
    with flood.serve() as url:
        error = ask(url, max_answer_bytes=LIMIT)

    assert isinstance(error, ProtocolError)
    assert f"Content-Encoding must be one of identity, gzip, got {encoding!r}" in str(error)


@pytest.mark.parametrize(
    "image",
    [photo(), photo(kind="JPEG"), photo(kind="WEBP"), photo(kind="TIFF"), np.zeros((60, 80, 3), np.uint8)],
    ids=["PNG", "JPEG", "WebP", "TIFF", "array"],
)
def test_no_mask_is_made_of_more_pixels_than_the_image_has(ask: Ask, image: Any) -> None:
    with lying("http", size=(30_000, 30_000)) as url:
        error = ask(url, image)

    assert isinstance(error, AnswerTooLargeError)
    assert "the answer is of an image of 30000 x 30000 pixels, but one of 80 x 60 was sent" in str(error)


def test_an_image_that_is_turned_by_its_header_is_answered_in_its_upright_size() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("L", (2048, 1024)).save(buffer, "JPEG", exif=turned)
    with lying("http", size=(2048, 1024)) as url, Client(url) as client:
        assert client.segment(buffer.getvalue(), model="coins").size == (2048, 1024)


@pytest.mark.parametrize("limit", [0, -1, 2**31, 1.5, None])
def test_a_bound_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(BadRequestError, match="max_answer_bytes must be a whole number from 1 to 2147483647"):
        Client(max_answer_bytes=limit)


STEERING = "\x1b]0;owned\x07\x1b[2J\u202ecoin\x00"


def segserve(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segserve_platform.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_terminal_is_not_steered_by_the_name_of_a_class(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo())
    with lying("http", name=STEERING, labels=bytes(60 * 80)) as url:
        done = segserve("predict", "coins", tmp_path / "a.png", "--url", url)

    assert done.returncode == 0, done.stderr
    assert "coin" in done.stdout
    assert not [each for each in done.stdout + done.stderr if not each.isprintable() and each != "\n"]


def test_the_terminal_is_not_steered_by_the_words_of_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo())
    gateway = Gateway({"coins": Model([], {}, answer)})
    with gateway.http() as url:
        gateway.models["coins"].outputs[:] = ["REVISION", STEERING]
        done = segserve("predict", "coins", tmp_path / "a.png", "--url", url)

    assert done.returncode == 1
    assert "owned" in done.stderr
    assert not [each for each in done.stdout + done.stderr if not each.isprintable() and each != "\n"]
