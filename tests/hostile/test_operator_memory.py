"""A tenant's data against the operator of all tenants: in a process of 512 MiB, the other pools' passes go on."""

from __future__ import annotations

import asyncio
import base64
import gzip

import pytest

from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld, model_manifest
from fakes.limited_process import MIB, run_within
from segserve_common.kube.kinds import CONFIG_MAPS, PODS, POOLS
from segserve_common.kube.shards import pack
from segserve_operator.adapters.kube.view import PoolKey

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
