"""The memory that a request costs every process is bounded by its unpacked bytes, whatever it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import grpc
import httpx
import pytest

from bench.platform import MODELS, Running, platform
from fakes.grown_messages import MODEL_INFER, framed, grown_messages, message_field
from fakes.hostile_caller import INFER, Http2Caller, connected
from fakes.waiting import HANG_S
from segserve_common.kserve import HEADER_LENGTH, pack_bytes

pytestmark = pytest.mark.platform
MEBIBYTE = 2**20
SIZE = 8 * MEBIBYTE
MOST_JSON = MEBIBYTE
SMALL_FRAME = 513
"""The least that Envoy does not join to what came before."""
BY_BYTE, OF_GRPC_MIB, OF_JSON_MIB = 12, 64, 128
"""What all processes together take for a request, beside what its image takes once it is decoded.

Eight times the bytes are Envoy's, if they come in frames for each of which it takes a page.
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with platform(MODELS) as running:
        yield running


def memory_mib(running: Running, field: str) -> float:
    """Return the sum of a field such as VmHWM over all processes."""
    total = 0
    for process in running.processes():
        with suppress(OSError):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith(field))
    return total / 1024


def peaks_mib(
    running: Running, requests: Iterable[tuple[str, bytes, Callable[[bytes], object]]], constant_mib: int
) -> dict[str, float]:
    """Send requests one after the other, and return by name what took more memory than it may.

    What a process keeps of former requests counts as well.
    """
    found, idle = {}, memory_mib(running, "VmRSS")
    for name, body, send in requests:
        for process in running.processes():
            with suppress(OSError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        send(body)
        if (excess := memory_mib(running, "VmHWM") - idle) > BY_BYTE * len(body) / MEBIBYTE + constant_mib:
            found[f"{name}, {len(body)} bytes"] = round(excess)
    return found


def test_no_message_of_grpc_takes_more_than_a_multiple_of_its_bytes(served: Running) -> None:
    unlimited = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(served.url.removeprefix("http://"), unlimited) as channel:

        def send(body: bytes) -> None:
            with suppress(grpc.RpcError):
                channel.unary_unary(MODEL_INFER)(body, timeout=HANG_S)

        def of_image(tensor: bytes) -> bytes:
            image = message_field(1, b"IMAGE") + message_field(2, b"BYTES") + b"\x18\1"
            return message_field(1, b"coins") + message_field(5, image) + message_field(7, tensor)

        def in_small_frames(body: bytes) -> None:
            headers = {"content-type": "application/grpc", "te": "trailers"}
            with connected(int(served.url.rpartition(":")[2])) as connection:
                caller, whole = Http2Caller(connection, MODEL_INFER, *headers.items()), framed(body)
                for at in range(0, len(whole), SMALL_FRAME):
                    caller.send(whole[at : at + SMALL_FRAME])
                caller.end()

        valid = of_image(pack_bytes([b"\xff\xd8\xff" + bytes(SIZE)]))
        grown = ((each.name, each.to_bytes(SIZE), send) for each in grown_messages())
        images = [("an image", valid, send), ("an image in small frames", valid, in_small_frames)]
        assert peaks_mib(served, chain(images, grown), OF_GRPC_MIB) == {}


PLACES = {
    "data": b'{"inputs":[{"name":"IMAGE","datatype":"BYTES","shape":[%d],"data":[%s]}]}',
    "numbers": b'{"inputs":[{"name":"PIXELS","datatype":"UINT8","shape":[%d],"data":[%s]}]}',
    "shape": b'{"inputs":[{"name":"IMAGE","datatype":"BYTES","id":%d,"shape":[%s]}]}',
    "inputs": b'{"id":"%d","inputs":[%s]}',
    "outputs": b'{"id":"%d","inputs":[],"outputs":[%s]}',
    "parameters": b'{"id":"%d","inputs":[],"parameters":{%s}}',
    "input parameters": b'{"id":"%d","inputs":[{"name":"IMAGE","datatype":"BYTES","shape":[1],"parameters":{%s}}]}',
    "name": b'{"id":"%d","inputs":[],"x":[%s]}',
}
UNITS = [b'""', b'"a"', b"0", b"1.5", b"true", b"null", b"[]", b"{}", b"[[[[]]]]", b'{"":""}', b'"":""', b'"a":1']
UNITS += [b'{"name":"MASKS"}', b'{"name":"IMAGE","datatype":"BYTES","shape":[1],"data":[""]}', b'"%s"' % (b"x" * 4000)]


def test_no_request_of_http_takes_more_than_a_multiple_of_its_bytes(served: Running) -> None:
    def send(body: bytes, headers: dict[str, str] | None = None) -> None:
        httpx.post(f"{served.url}{INFER}", content=body, headers=headers, timeout=HANG_S)

    def requests() -> Iterator[tuple[str, bytes, Callable[[bytes], object]]]:
        for place, text in PLACES.items():
            for unit in UNITS:
                count = (MOST_JSON - 200) // (len(unit) + 1)
                yield f"{place} of {unit[:20]!r}", text % (count, b",".join([unit] * count)), send
        header = b'{"inputs":[{"name":"IMAGE","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":%d}}]}'
        for name, tensor in {"an image": pack_bytes([bytes(SIZE)]), "texts": bytes(SIZE)}.items():
            head = header % len(tensor)
            yield name, head + tensor, lambda body, head=head: send(body, {HEADER_LENGTH: str(len(head))})

    assert peaks_mib(served, requests(), OF_JSON_MIB) == {}
