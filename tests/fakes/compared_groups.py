"""A comparator at real sockets, between a sender of copies and the servers of two groups."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
from tritonclient.grpc import service_pb2 as pb

from fakes.group_servers import GroupServers, serve_grpc, serve_http
from fakes.waiting import HANG_S, eventually
from raw_inference import Protocol
from segserve_builder.comparator import service
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_builder.comparator.service import Comparator, Compare, Pacing
from segserve_builder.copies.copies import MODEL_INFER, RequestCopy
from segserve_builder.copies.groups import Answer, GroupClient
from segserve_builder.copies.http_server import ByteBudget, serving
from segserve_common.files import write_private
from segserve_common.kserve import InferRequest, Tensor, encode_http, pack_bytes

COMPARISON: Final = {"stable": "blue", "candidate": "green", "requests_per_s": 1000.0}
INFER: Final = "/v2/models/coins/infer"
MAX_BODY: Final = 2**20


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class World:
    """A comparator, the groups that it asks, and a sender of copies as the gateway is."""

    servers: GroupServers
    comparator: Comparator
    folder: ComparatorFolder
    copies: httpx.AsyncClient
    control: httpx.AsyncClient
    budget: ByteBudget
    clock: Clock
    protocol: Protocol

    def compare(self, **comparisons: dict[str, Any] | None) -> None:
        write_private(self.folder.comparisons, json.dumps(comparisons))

    async def pairs(self) -> dict[str, Any]:
        return dict((await self.control.get("/pairs")).json())

    async def send(self, content: bytes = b"an image", model: str = "coins", **headers: str) -> int:
        """Send a copy; the clock goes on, so that the rate allows the next one."""
        self.clock.now_s += 1e-2
        copy = copy_of(self.protocol, content, model)
        reply = await self.copies.post(**{**copy, "headers": {**copy["headers"], **headers}})
        return reply.status_code

    async def send_all(self, count: int) -> None:
        """Send copies that have room, and wait until they were asked."""
        for number in range(count):
            await self.send(b"image %d" % number)
        await self.idle()

    def asked(self) -> int:
        return sum(map(len, self.servers.bodies.values()))

    async def idle(self) -> None:
        """Wait until no copy is held any more."""

        async def nothing_is_held() -> bool:
            return self.budget.held == 0

        await eventually(nothing_is_held, "no copy is held")

    async def warm_up(self) -> None:
        await self.send()
        await self.idle()
        self.clock.now_s += service.WARM_UP_S


def copy_of(
    protocol: Protocol,
    content: bytes,
    model: str = "coins",
    outputs: tuple[str, ...] = (),
    parameters: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a request about an encoded image, as `httpx` takes it."""
    if protocol == "grpc":
        message = pb.ModelInferRequest(model_name=model, raw_input_contents=[pack_bytes([content])])
        message.inputs.add(name="IMAGE", datatype="BYTES", shape=[1])
        for name in outputs:
            message.outputs.add(name=name)
        for name, text in (parameters or {}).items():
            message.parameters[name].string_param = text
        return {
            "url": MODEL_INFER,
            "content": framed(message.SerializeToString()),
            "headers": {"content-type": "application/grpc"},
        }
    headers, body = encode_http(InferRequest(model, (Tensor.of_items("IMAGE", [content]),), outputs, parameters or {}))
    return {"url": f"/v2/models/{model}/infer", "content": body, "headers": headers}


def framed(message: bytes) -> bytes:
    """Return a message as gRPC frames it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def client_of(socket: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://comparator", timeout=60
    )


def at_full_rate(requests_per_s: float) -> Pacing:
    """Return a pacing that need not learn how long stable takes before it asks as often as it may."""
    pacing = Pacing(requests_per_s)
    pacing.share = 1.0
    return pacing


async def compare_nothing(*_: Any, keep_below: float) -> None:
    """Compare as if no answers could be compared."""


@asynccontextmanager
async def comparing(
    protocol: Protocol,
    *,
    impatient_of: str = "",
    compare: Compare = compare_nothing,
    pace: Callable[[float], Pacing] = at_full_rate,
) -> AsyncIterator[World]:
    """Run a comparator and the groups that it asks over a protocol, during the block.

    It is `impatient_of` one of them: that one has failed after 0.2 s, the others never do so by being late.
    """
    async with AsyncExitStack() as stack:
        # The path of a socket has at most 107 characters, which leaves no room for a test's name.
        folder = Path(stack.enter_context(TemporaryDirectory()))
        servers, clock, budget = GroupServers({"blue": b"", "green": b""}), Clock(), ByteBudget(4 * MAX_BODY)
        serve = serve_grpc if protocol == "grpc" else serve_http
        url = await stack.enter_async_context(serve(servers, folder / "gateway.sock"))
        patient, impatient = GroupClient(url, timeout_s=HANG_S), GroupClient(url, timeout_s=0.2)
        stack.push_async_callback(patient.close)
        stack.push_async_callback(impatient.close)

        async def ask(copy: RequestCopy, group: str) -> Answer:
            return await (impatient if group == impatient_of else patient).ask(copy, group)

        paths = ComparatorFolder(folder)
        comparator = Comparator(paths, ask, compare, budget, pace=pace, monotonic_s=clock)
        stack.push_async_callback(comparator.close)
        for path, handler in ((paths.copies, comparator.take), (paths.control, comparator.control)):
            await stack.enter_async_context(serving(path, handler, max_body=MAX_BODY, budget=budget))
        clients = [await stack.enter_async_context(client_of(path)) for path in (paths.copies, paths.control)]
        yield World(servers, comparator, paths, clients[0], clients[1], budget, clock, protocol)
