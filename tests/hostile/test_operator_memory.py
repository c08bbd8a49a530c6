"""A tenant's data against the operator of all tenants: in a process of 512 MiB, the other pools' passes go on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld, model_manifest
from fakes.limited_process import MIB, run_within
from fakes.waiting import HANG_S
from segserve_common.http.guard import get_bounded
from segserve_common.http.urls import RequestError
from segserve_common.kube.kinds import CONFIG_MAPS, PODS, POOLS, REVISIONS, Json
from segserve_common.kube.names import COMPONENT_LABEL, GROUP_LABEL, MANAGED_LABELS, POOL_LABEL, SERVER, assignment_name
from segserve_common.kube.shards import pack
from segserve_operator.adapters.checks import gateway
from segserve_operator.adapters.kube.view import PoolKey
from segserve_operator.adapters.samples import wire

MEMORY = 512 * MIB
OTHER = PoolKey(NAMESPACE, "other")


def zipped(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 1)).decode()


def _large() -> str:
    return zipped(b'{"uid":"' + b"0" * (64 * MIB) + b'","serverReady":true,"models":[]}')


def _wide() -> str:
    return zipped(b'{"uid":"","serverReady":true,"models":[' + b'{"":0},' * (2 * MIB) + b"0]}")


def _deep() -> str:
    return zipped(b"[" * 200_000)


def _odd() -> str:
    plan = {"format": 2, "routes": [7], "endpoints": {}, "lists": [[9]]}
    return pack({"uid": "", "shards": ["a"], "draining": 7, "refused": {"0": {"why": []}}, "models": 9, **plan})


VALUES = {"64 MiB in 64 KiB": _large, "millions of objects": _wide, "lists in lists": _deep, "other types": _odd}


def serve_beside() -> None:
    """A world of two pools, in one of which somebody writes each value into all ConfigMaps that the operator reads."""
    asyncio.run(_serve_beside())


async def _serve_beside() -> None:
    world = ClusterWorld(keys=(KEY, OTHER))
    for key in world.keys:
        metadata = {"name": key.pool, "namespace": NAMESPACE}
        world.apply({"apiVersion": POOLS.api_version, "kind": POOLS.name, "metadata": metadata, "spec": {}})
        world.apply(model_manifest(f"model-of-{key.pool}", pool=key.pool))
    await world.turns(6)
    maps = [found["metadata"]["name"] for found in world.view.of_pool(CONFIG_MAPS, KEY)]
    members = [pod["metadata"]["name"] for pod in world.view.of_pool(PODS, KEY)]
    for number, (name, make) in enumerate(VALUES.items()):
        value = make()
        content = {"binaryData": {"content": value}, "data": {"changed": "[" * 9_999}}
        for each in maps:
            patch = {"binaryData": dict.fromkeys(members, value)} if "reports" in each else content
            world.kube.edit(CONFIG_MAPS, NAMESPACE, each, patch)
        world.apply(model_manifest("model-of-other", network=str(number), pool=OTHER.pool))
        for key in world.keys * 2:
            await world.run_pass(key)  # raises nothing, for either pool
        await world.turns(4)

        assert world.condition("model-of-other", "Ready")[0] == "True", name
        assert world.condition("model-of-default", "Ready")[0] == "True", f"{name} was not written anew"


@pytest.mark.core
def test_what_a_tenant_writes_into_config_maps_does_not_end_the_operator_of_others() -> None:
    run_within(MEMORY, serve_beside)


def hold_strangers() -> None:
    """A cluster in which somebody has made 300 ConfigMaps of 1 MiB, with our labels, in a namespace without a pool."""
    asyncio.run(_hold_strangers())


async def _hold_strangers() -> None:
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins"))
    await world.turns(3)
    for number in range(300):
        for item in _strangers(number, "x" * MIB):  # each anew, as events and pages bring them
            world.view.take(CONFIG_MAPS if item["kind"] == "ConfigMap" else REVISIONS, item)
    world.apply(model_manifest("coins", network="2"))
    await world.turns(6)

    assert world.condition("coins", "Ready")[0] == "True"
    assert len(world.view.of_pool(CONFIG_MAPS, PoolKey("evil", "default"))) == 0


def _strangers(number: int, text: str) -> Iterator[Json]:
    """Yield objects of no pool, and one with the name and labels of a group in the namespace of the pool."""
    metadata = {"uid": f"u{number}", "resourceVersion": str(10**6 + number)}
    labels = {**MANAGED_LABELS, POOL_LABEL: "default"}
    for kind, content in (("ConfigMap", "binaryData"), ("ControllerRevision", "data")):
        place = {"name": f"map-{number}", "namespace": "evil", "labels": labels}
        yield {"kind": kind, "metadata": {**metadata, **place}, content: {"content": text + kind}}
    group = f"main-{number}"
    place = {"name": assignment_name("default", group, 0), "namespace": NAMESPACE}
    labels = {**labels, GROUP_LABEL: group, COMPONENT_LABEL: SERVER}
    yield {
        "kind": "ConfigMap",
        "metadata": {**metadata, "uid": f"g{number}", **place, "labels": labels},
        "binaryData": {"content": text + group},
    }


@pytest.mark.core
def test_objects_that_only_have_the_labels_of_segserve_take_no_memory() -> None:
    run_within(MEMORY, hold_strangers)


# What gateways, servers and services answer


class Bomb(BaseHTTPRequestHandler):
    """Answers with a little that unpacks to 200 MiB, or with a stream that has no end."""

    bomb = b""

    def do_GET(self) -> None:
        self.send_response(200)
        if "endless" in self.path:
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"0" * MIB)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(self.bomb)))
        self.end_headers()
        self.wfile.write(self.bomb)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def read_bombs(url: str) -> None:
    """Ask an evil pod as the operator asks pods."""
    asyncio.run(_read_bombs(url))


async def _read_bombs(url: str) -> None:
    async with httpx.AsyncClient(timeout=HANG_S, trust_env=False) as client:
        for path in ("", "/endless"):
            with pytest.raises(RequestError, match=r"compressed|more than"):
                await get_bounded(client, url + path, max_bytes=8 * MIB, timeout_s=HANG_S)


def test_a_pods_answer_that_unpacks_to_much_or_never_ends_is_given_up() -> None:
    Bomb.bomb = gzip.compress(b'{"a":"' + b"0" * (200 * MIB) + b'"}', 1)
    with ThreadingHTTPServer(("127.0.0.1", 0), Bomb) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run_within(MEMORY, read_bombs, f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


async def test_a_gateways_counts_are_read_without_what_was_not_asked_for() -> None:
    counts = {f"invented-{number}": {"epoch": "1", "age": 0.0, "tallies": []} for number in range(1000)}
    body = json.dumps({"coins": counts["invented-0"], **counts}).encode()

    async def parts() -> AsyncIterator[bytes]:
        yield body

    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=parts()))
    async with httpx.AsyncClient(transport=transport) as client:
        assert set(await wire.fetch_counts(client, "10.0.0.1", ["coins"], 100.0)) == {"coins"}


async def test_an_answer_of_a_pools_servers_is_read_up_to_a_mebibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += MIB
            yield b"0" * MIB

    def client(_: str, *, timeout_s: float) -> httpx.AsyncClient:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, content=endless()))
        return httpx.AsyncClient(base_url="http://gateway", transport=transport, timeout=timeout_s)

    async def address() -> str:
        return "gateway"

    monkeypatch.setattr(gateway, "internal_client", client)
    asked = gateway.InternalGateway(address)

    assert await asked.infer("coins", "main", "coins-1", b"image", {}, 5.0) == {}
    assert sent <= 3 * MIB
    await asked.close()
