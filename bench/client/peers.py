"""The same inference by our client and by raw libraries."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import httpx
import numpy as np
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
import tritonclient.http.aio as by_http_aio

from bench.platform import MODELS
from segserve import AsyncClient, Client
from segserve_common.kserve import HEADER_LENGTH, InferRequest, Tensor, decode_http, encode_http

MODEL: Final = "coins-instances"
PHOTO: Final = (MODELS.parent / "coins.png").read_bytes()
OUTPUTS: Final = ("REVISION", "SIZE", "BOXES", "SCORES", "CLASSES", "MASKS")
PARAMETERS: Final = {"outputs": ",".join(OUTPUTS)}
REQUEST: Final = InferRequest(MODEL, (Tensor.of_items("IMAGE", [PHOTO]),), OUTPUTS, PARAMETERS)

OURS, OURS_GRPC = "segserve, HTTP", "segserve, gRPC"
HTTPX, TRITON, TRITON_GRPC = "httpx", "tritonclient, HTTP", "tritonclient, gRPC"


@dataclass(frozen=True, slots=True)
class Address:
    """URLs of a server for HTTP and gRPC; those of the gateway are equal."""

    http: str
    grpc: str


def httpx_call(address: Address) -> Callable[[], httpx.Response]:
    """Return a call that encodes the request and receives the response without decoding it."""
    client = httpx.Client(base_url=address.http, trust_env=False, timeout=60)

    def call() -> httpx.Response:
        headers, body = encode_http(REQUEST)
        answer = client.post(f"/v2/models/{MODEL}/infer", headers=headers, content=body)
        return answer.raise_for_status()

    return call


def tritonclient_call(library: Any, url: str) -> Callable[[], dict[str, Any]]:
    """Return a call that encodes the request and decodes the outputs to arrays."""
    own = threading.local()  # the HTTP client may be used only by the thread that created it

    def call() -> dict[str, Any]:
        if not hasattr(own, "client"):
            own.client = library.InferenceServerClient(url.removeprefix("http://"))
        answer = own.client.infer(MODEL, [image(library)], outputs=output_requests(library), parameters=PARAMETERS)
        return {name: answer.as_numpy(name) for name in OUTPUTS}

    return call


def image(library: Any) -> Any:
    tensor = library.InferInput("IMAGE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([PHOTO], np.object_))
    return tensor


def output_requests(library: Any) -> list[Any]:
    return [library.InferRequestedOutput(name) for name in OUTPUTS]


def one_call(address: Address) -> dict[str, Callable[[], Any]]:
    """Return a call of each library."""
    ours = Client(address.http)
    ours_grpc = Client(address.grpc, transport="grpc")
    return {
        OURS: partial(ours.segment, PHOTO, model=MODEL),
        HTTPX: httpx_call(address),
        TRITON: tritonclient_call(by_http, address.http),
        OURS_GRPC: partial(ours_grpc.segment, PHOTO, model=MODEL),
        TRITON_GRPC: tritonclient_call(by_grpc, address.grpc),
    }


def check(calls: Mapping[str, Callable[[], Any]]) -> None:
    """Exit if the libraries get different masks: they would not do the same work."""
    answer = calls[HTTPX]()
    masks = {HTTPX: decode_http(answer.content, answer.headers[HEADER_LENGTH])["MASKS"].to_items()}
    for name in (TRITON, TRITON_GRPC):
        masks[name] = tuple(calls[name]()["MASKS"].tolist())
    for name in (OURS, OURS_GRPC):
        masks[name] = tuple(instance.encoded.data for instance in calls[name]().instances)
    if len(set(masks.values())) != 1 or not masks[HTTPX]:
        raise SystemExit(f"the libraries got different masks: { {name: len(each) for name, each in masks.items()} }")


def threads_call(address: Address) -> Callable[[int, int], int]:
    """Return a run of `segment_many`."""
    client = Client(address.http)
    return lambda count, in_flight: sum(
        len(result.instances) for result in client.segment_many([PHOTO] * count, model=MODEL, in_flight=in_flight)
    )


def tasks_call(address: Address) -> Callable[[int, int], int]:
    """Return a run of the asynchronous `segment_many`."""

    async def run(count: int, in_flight: int) -> int:
        async with AsyncClient(address.http) as client:
            results = client.segment_many([PHOTO] * count, model=MODEL, in_flight=in_flight)
            return sum([len(each.instances) async for each in results])

    return lambda count, in_flight: asyncio.run(run(count, in_flight))


def tritonclient_tasks_call(address: Address) -> Callable[[int, int], int]:
    """Return a run of tritonclient's aiohttp client, with one task for each request in flight."""

    async def run(count: int, in_flight: int) -> int:
        async with by_http_aio.InferenceServerClient(address.http.removeprefix("http://")) as client:

            async def one() -> int:
                answer = await client.infer(
                    MODEL, [image(by_http_aio)], outputs=output_requests(by_http), parameters=PARAMETERS
                )
                return len([answer.as_numpy(name) for name in OUTPUTS][-1])

            return sum(await spread(one, count, in_flight))

    return lambda count, in_flight: asyncio.run(run(count, in_flight))


def httpx_tasks_call(address: Address) -> Callable[[int, int], int]:
    """Return a run of httpx's asynchronous client, with one task for each request in flight."""

    async def run(count: int, in_flight: int) -> int:
        async with httpx.AsyncClient(base_url=address.http, trust_env=False, timeout=60) as client:

            async def one() -> int:
                headers, body = encode_http(REQUEST)
                answer = await client.post(f"/v2/models/{MODEL}/infer", headers=headers, content=body)
                return len(answer.raise_for_status().content) and 1

            return sum(await spread(one, count, in_flight))

    return lambda count, in_flight: asyncio.run(run(count, in_flight))


async def spread(one: Callable[[], Awaitable[int]], count: int, in_flight: int) -> list[int]:
    """Await `one` `count` times, from `in_flight` tasks."""

    async def some(times: int) -> int:
        return sum([await one() for _ in range(times)])

    return await asyncio.gather(*(some(count // in_flight) for _ in range(in_flight)))


def many_calls(address: Address) -> dict[str, Callable[[int, int], int]]:
    """Return a run of many images by each library, a function of their number and of the number in flight."""
    return {
        "segserve, threads": threads_call(address),
        "segserve, asyncio": tasks_call(address),
        "httpx, asyncio": httpx_tasks_call(address),
        "tritonclient HTTP, asyncio": tritonclient_tasks_call(address),
    }
