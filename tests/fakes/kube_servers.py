"""The two API servers of the contract, and what others than operators do there."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from fakes.kube import FakeKube
from segserve_common.api_errors import NotFoundError
from segserve_common.kube.client import KubeClient
from segserve_common.kube.kinds import CONFIG_MAPS, CUSTOM_RESOURCE_DEFINITIONS, Json, Kind
from segserve_operator.adapters.kube.api import Api

THINGS = Kind("contract.segserve.dev", "v1", "Thing", "things")
UNSERVED = Kind("contract.segserve.dev", "v9", "Ghost", "ghosts")


class FakeServer:
    """The one in memory."""

    def __init__(self) -> None:
        self.kube = FakeKube()
        self.kube.unserved.add(UNSERVED)
        self.namespace = "contract"

    @property
    def api(self) -> Api:
        return self.kube

    async def edit(self, name: str, data: Json) -> None:
        """Change a ConfigMap's data as `kubectl edit` would."""
        self.kube.edit(CONFIG_MAPS, self.namespace, name, {"data": data})

    def collect(self) -> None:
        self.kube.collect()


class RealServer:
    """The one of the tests' cluster."""

    def __init__(self, api: Api, client: KubeClient, namespace: str) -> None:
        self._api, self._client, self.namespace = api, client, namespace

    @property
    def api(self) -> Api:
        return self._api

    async def edit(self, name: str, data: Json) -> None:
        await asyncio.to_thread(self._client.patch, CONFIG_MAPS, name, {"data": data}, namespace=self.namespace)

    def collect(self) -> None:
        """The controllers do it."""


Server: TypeAlias = FakeServer | RealServer


def things_crd() -> Json:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {
        "name": THINGS.version,
        "served": True,
        "storage": True,
        "schema": schema,
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": CUSTOM_RESOURCE_DEFINITIONS.api_version,
        "kind": CUSTOM_RESOURCE_DEFINITIONS.name,
        "metadata": {"name": f"{THINGS.plural}.{THINGS.group}"},
        "spec": {
            "group": THINGS.group,
            "names": {"kind": THINGS.name, "plural": THINGS.plural},
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def config(name: str, metadata: Json | None = None, **data: str) -> Json:
    return {"metadata": {"name": name, **(metadata or {})}, "data": data}


def thing(name: str, metadata: Json | None = None, **fields: Json) -> Json:
    return {
        "apiVersion": THINGS.api_version,
        "kind": THINGS.name,
        **fields,
        "metadata": {"name": name} | (metadata or {}),
    }


def deployment(name: str, **containers: Json) -> Json:
    labels = {"app": name}
    named = [{"name": container, "image": "none", **more} for container, more in containers.items()]
    template = {"metadata": {"labels": labels}, "spec": {"containers": named}}
    return {
        "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    }


def version(item: Json) -> str:
    return str(item["metadata"]["resourceVersion"])


async def gone(server: Server, kind: Kind, name: str) -> bool:
    try:
        await server.api.get(kind, server.namespace, name)
    except NotFoundError:
        return True
    return False
