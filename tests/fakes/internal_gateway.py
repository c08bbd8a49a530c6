"""A stand-in for the internal listener: answers over real HTTP, as each group is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from fakes.waiting import eventually

Arrays = Mapping[str, np.ndarray]
Reply = Arrays | int
"""An answer's tensors, or the status of an error."""


@dataclass
class Asked:
    """One request as it arrived."""

    group: str
    image: bytes
    parameters: dict[str, Any]


@dataclass
class InternalListener:
    """`answers` has by group what makes a reply of an image; a group that is not there is 404. `hangs` never answer."""

    answers: dict[str, Callable[[bytes], Reply]]
    hangs: set[str] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)
    url: str | None = None
    in_flight: int = 0
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    async def address(self) -> str | None:
        """Return where it listens, as the Traffic port does."""
        return self.url

    async def _infer(self, request: web.Request) -> web.Response:
        body = await request.read()
        header = json.loads(body[: int(request.headers["Inference-Header-Content-Length"])])
        size = header["inputs"][0]["parameters"]["binary_data_size"]
        asked = Asked(request.headers["x-segserve-group"], body[-size + 4 :], header.get("parameters", {}))
        self.asked.append(asked)
        if asked.group in self.hangs:
            self.in_flight += 1
            await self.ending.wait()
            self.in_flight -= 1
        if asked.group not in self.answers:
            return web.json_response({"error": f"no model 'coins' in a group '{asked.group}'"}, status=404)
        reply = self.answers[asked.group](asked.image)
        if isinstance(reply, int):
            return web.json_response({"error": "it broke"}, status=reply)
        return _tensors(reply)


def _tensors(arrays: Arrays) -> web.Response:
    raws = {name: _raw(array) for name, array in arrays.items()}
    outputs = [
        {
            "name": name,
            "datatype": np_to_triton_dtype(array.dtype),
            "shape": array.shape,
            "parameters": {"binary_data_size": len(raws[name])},
        }
        for name, array in arrays.items()
    ]
    head = json.dumps({"model_name": "coins", "outputs": outputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return web.Response(body=b"".join((head, *raws.values())), headers=headers)


def _raw(array: np.ndarray) -> bytes:
    if array.dtype != np.object_:
        return array.tobytes()
    return bytes(serialize_byte_tensor(array).item()) if array.size else b""


@asynccontextmanager
async def internal_listener(**answers: Callable[[bytes], Reply]) -> AsyncIterator[InternalListener]:
    """Listen on a free port of loopback while the block runs."""
    found = InternalListener(answers)
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v2/models/{model}/infer", found._infer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield found
    finally:
        found.ending.set()

        async def answered() -> bool:
            return found.in_flight == 0

        await eventually(answered, "what hung has ended")  # a handler that is cut off leaves its connection open
        await runner.cleanup()
