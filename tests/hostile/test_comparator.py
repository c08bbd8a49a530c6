"""What callers and servers send reaches the comparator: it holds little, never ends, and is there for the next copy."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import struct
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from fakes.compared_groups import COMPARISON, INFER, World, comparing, copy_of, framed
from fakes.group_servers import GroupServers, serve_http
from fakes.waiting import HANG_S, eventually
from raw_inference import png_header
from segserve_builder.comparator import service
from segserve_builder.comparator.comparing import AnswerComparer, AnswerComparison
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_builder.copies import http_server
from segserve_builder.copies.copies import MODEL_INFER, RequestCopy
from segserve_builder.copies.groups import MAX_ANSWER_BYTES, Answer, AnswerKind
from segserve_common.kserve import Tensor

MIB = 2**20


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with comparing("http") as compared:
        compared.compare(coins=COMPARISON)
        yield compared


async def write(socket: Path, *parts: bytes) -> bytes:
    """Send bytes as they are; return what came back until the connection was closed, or until nothing more is sent."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def request(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: a", *headers, "", ""]).encode()


CHUNKED = "transfer-encoding: chunked"
BROKEN = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 100,
    "a header without end": request(INFER)[:-2] + b"x: " + b"a" * 300_000,
    "a length that is none": request(INFER, "content-length: -1") + b"abc",
    "two lengths": request(INFER, "content-length: 3", "content-length: 4") + b"abcd",
    "a body that ends early": request(INFER, "content-length: 1000") + b"abc",
    "a chunk whose size is none": request(INFER, CHUNKED) + b"xyz\r\nabc\r\n0\r\n\r\n",
    "a chunk of more than all bytes": request(INFER, CHUNKED) + b"ffffffffffffffffffff\r\nabc",
    "a chunk that ends early": request(INFER, CHUNKED) + b"ff\r\nabc",
    "a tunnel": b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n" + b"abc",
    "another protocol": request("/", "connection: upgrade", "upgrade: websocket", "content-length: 0") + b"abc",
    "a head and nothing else": b"HEAD / HTTP/1.0\r\n\r\n",
    "an expectation": request(INFER, "expect: 100-continue", "content-length: 3"),
    "two requests and half a third": request("/", "content-length: 1") + b"a" + request("/") + b"POST",
    "a body of tiny chunks": request(INFER, CHUNKED) + b"1\r\na\r\n" * (http_server.MAX_PARTS + 1),
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN.keys())
async def test_broken_framing_is_no_copy_and_the_next_one_is_taken(
    world: World, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await write(world.folder.copies, sent)
    assert world.budget.held == 0
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []

    assert await world.send() == 204
    await world.idle()
    assert {group: len(bodies) for group, bodies in world.servers.bodies.items()} == {"blue": 1, "green": 1}


def varint(number: int) -> bytes:
    low = number & 0x7F
    return bytes([low | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([low])


def text(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


MESSAGES = {
    "two models": framed(text(1, b"coins") + text(1, b"other")),
    "no model": framed(text(3, b"id")),
    "a name that is no text": framed(text(1, b"\xff\xfe")),
    "a field that ends behind the message": framed(text(1, b"coins") + b"\x3a\xff\xff\xff\xff\x0f"),
    "a number without end": framed(text(1, b"coins") + b"\x10" + b"\xff" * 1000),
    "groups": framed(text(1, b"coins") + b"\x0b" * 1000),
    "a million fields": framed(text(1, b"coins") + b"\x10\x01" * 500_000),
    "two messages": framed(text(1, b"coins")) * 2,
    "a frame that is longer than the body": b"\0\xff\xff\xff\xff" + text(1, b"coins"),
    "a compressed message": b"\1" + framed(text(1, b"coins"))[1:],
    "half a frame": b"\0\0",
    "nothing": b"",
}


@pytest.mark.parametrize("body", MESSAGES.values(), ids=MESSAGES.keys())
async def test_a_message_that_readers_could_read_differently_is_asked_of_nobody(world: World, body: bytes) -> None:
    await world.copies.post(MODEL_INFER, content=body)

    await world.idle()
    assert world.asked() == 0


async def test_a_body_beyond_the_limit_is_read_dropped_and_counted(world: World) -> None:
    await world.pairs()
    await world.copies.post(INFER, content=b"a" * (20 * MIB))

    assert world.budget.held == 0
    assert world.asked() == 0
    assert (await world.pairs())["coins"]["dropped"] == 1


async def test_connections_beyond_the_limit_are_closed_and_cost_the_others_nothing(world: World) -> None:
    flood = [
        await asyncio.open_unix_connection(str(world.folder.copies)) for _ in range(2 * http_server.MAX_CONNECTIONS)
    ]
    for _, writer in flood:
        writer.write(request(INFER, "content-length: 1000") + b"abc")
    ends = [reader.read() for reader, _ in flood[http_server.MAX_CONNECTIONS :]]
    await asyncio.gather(*ends, return_exceptions=True)
    # The control socket has connections of its own.
    assert (await world.control.get("/live")).status_code == 200

    for _, writer in flood:
        writer.close()

    async def is_taken() -> bool:
        try:
            return await world.send() == 204
        except httpx.TransportError:
            return False

    await eventually(is_taken, "a copy is taken once the flood is over")


async def test_what_a_caller_writes_into_headers_reaches_no_group(world: World) -> None:
    copy = copy_of("http", b"an image")
    await world.copies.post(INFER, content=copy["content"], headers={**copy["headers"], "x-segserve-group": "other"})

    await world.idle()
    assert world.servers.bodies.keys() == {"blue", "green"}


async def test_a_groups_endless_answer_is_not_held(world: World) -> None:
    await world.warm_up()
    world.servers.answers["green"] = b"a" * (MAX_ANSWER_BYTES + 1)

    await world.send_all(1)

    assert (await world.pairs())["coins"]["failed"] == [1, 0, 0, 0]
    assert sum((await world.pairs())["coins"]["disagreements"]) == 0


def answer(*tensors: Tensor, **lies: Any) -> Answer:
    outputs = [
        {"name": each.name, "datatype": each.datatype, "shape": each.shape}
        | {"parameters": {"binary_data_size": len(each.raw)}}
        | lies
        for each in tensors
    ]
    header = json.dumps({"outputs": outputs}).encode()
    body = header + b"".join(each.raw for each in tensors)
    return Answer(AnswerKind.ANSWERED, 0.1, body, str(len(header)))


def label_map(megabytes: int) -> Answer:
    """Return a label map of so many million pixels, all zeros, whose PNG file has a thousandth of that."""
    width, height = 2**15 - 1, megabytes * 32  # a row begins with a byte of its own
    packed = zlib.compressobj(9, wbits=-15)
    block = packed.compress(bytes(MIB)) + packed.flush(zlib.Z_FULL_FLUSH)
    checksum = (megabytes * MIB % 65521) << 16 | 1
    data = b"\x78\xda" + block * megabytes + b"\x03\x00" + struct.pack(">I", checksum)
    into = io.BytesIO(png_header(width, height))
    into.seek(0, 2)
    for kind, content in ((b"IDAT", data), (b"IEND", b"")):
        into.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return answer(
        Tensor.of_array("SIZE", np.array([height, width], "<i4")),
        Tensor.of_items("LABELS", [into.getvalue()]),
        Tensor.of_array("CLASSES", np.zeros(1, "<i4")),
        Tensor.of_array("AREAS", np.zeros(1, "<i8")),
    )


BOXES = answer(
    Tensor.of_array("SIZE", np.array([10, 10], "<i4")),
    Tensor.of_array("BOXES", np.array([[0, 0, 5, 5]], "<f4")),
    Tensor.of_array("CLASSES", np.zeros(1, "<i4")),
)


def worst_answers() -> Iterator[tuple[str, Answer]]:
    deep = b"[" * 1_000_000
    yield "deep JSON", Answer(AnswerKind.ANSWERED, 0.1, b'{"outputs": ' + deep, "")
    yield "a header length of all", Answer(AnswerKind.ANSWERED, 0.1, b"{}", "9" * 18)
    yield "a shape of more than memory", answer(Tensor.of_items("BOXES", []), shape=[2**40, 2**40])
    yield "millions of empty texts", answer(Tensor.of_items("MASKS", [b""] * 3_000_000))
    yield "a label map of a billion pixels", label_map(900)


async def test_the_worst_answers_are_not_compared_and_the_next_pair_is() -> None:
    comparer = AnswerComparer()
    copy = RequestCopy("coins", "http", INFER, b"{}")
    try:
        found = {name: await comparer.compare(copy, each, each, keep_below=0.0) for name, each in worst_answers()}
        assert dict.fromkeys(found) == found
        assert await comparer.compare(copy, BOXES, BOXES, keep_below=0.0) == AnswerComparison(1.0)
    finally:
        await comparer.close()


async def test_a_worker_that_dies_or_takes_too_long_costs_one_pair() -> None:
    comparer = AnswerComparer()
    copy = RequestCopy("coins", "http", INFER, b"{}")
    try:
        assert await comparer.compare(copy, BOXES, BOXES, keep_below=0.0) == AnswerComparison(1.0)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            comparer._worker.process.send_signal(number)
            comparer._worker._timeout_s = 0.2
            assert await comparer.compare(copy, BOXES, BOXES, keep_below=0.0) is None
            comparer._worker._timeout_s = HANG_S
            assert await comparer.compare(copy, BOXES, BOXES, keep_below=0.0) == AnswerComparison(1.0)
    finally:
        await comparer.close()


@asynccontextmanager
async def comparator_process(folder: Path, gateway: str) -> AsyncIterator[psutil.Process]:
    arguments = ["-m", "segserve_builder.comparator", str(folder), "--gateway", gateway]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=asyncio.subprocess.PIPE)
    copies = ComparatorFolder(folder).copies

    async def is_there() -> bool:
        return copies.exists()

    try:
        await eventually(is_there, "the comparator listens")
        yield psutil.Process(process.pid)
        process.send_signal(signal.SIGTERM)
        _, log = await process.communicate()
        assert process.returncode == 0, log.decode()
        assert b"Traceback" not in log
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert not copies.exists()


@pytest.fixture
def folder() -> Iterator[ComparatorFolder]:
    """Yield a folder with a short path: that of a socket has at most 107 characters."""
    with TemporaryDirectory() as path:
        yield ComparatorFolder(Path(path))


async def test_ten_thousand_copies_at_once_while_nobody_answers_are_taken_in_little_memory(
    folder: ComparatorFolder,
) -> None:
    servers = GroupServers({"blue": None, "green": None})
    folder.comparisons.write_text(json.dumps({"coins": {**COMPARISON, "requests_per_s": 1e6}}))
    body = b"a" * 50_000
    copies = (request(INFER, f"content-length: {len(body)}") + body) * 100
    async with (
        serve_http(servers, folder.path / "gateway.sock") as url,
        comparator_process(folder.path, url) as process,
    ):
        before = process.memory_info().rss
        replies = await asyncio.gather(*(write(folder.copies, *[copies] * 10) for _ in range(10)))
        transport = httpx.AsyncHTTPTransport(uds=str(folder.control))
        async with httpx.AsyncClient(transport=transport, base_url="http://a", timeout=60) as control:
            pairs = (await control.get("/pairs")).json()["coins"]
        grown = process.memory_info().rss - before

    assert [reply.count(b"HTTP/1.1 204") for reply in replies] == [1000] * 10
    # Those that wait, and the few under way, are the only ones that are held.
    assert pairs["dropped"] >= 10_000 - service.PAIRS_PER_MODEL - service.WAITING_PER_MODEL - 1
    assert grown < 100 * MIB
