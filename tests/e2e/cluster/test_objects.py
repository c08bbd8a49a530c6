"""What segserve renders, at a real API server: accepted, found again as it was meant, and put right after edits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fakes.cluster import Cluster
from fakes.pools import FULL, MINIMAL, coins, pods_with, pool_context
from segserve_common.kube.async_client import AsyncKubeClient
from segserve_common.kube.kinds import CHILDREN, CONFIG_MAPS, POOLS, Kind
from segserve_common.kube.names import reports_name
from segserve_common.kube.shards import pack
from segserve_operator.adapters.kube.children import apply_differing
from segserve_operator.adapters.kube.drift import covers
from segserve_operator.adapters.kube.objects import (
    PoolContext,
    assignment_config_map,
    gateway_objects,
    group_objects,
    own_report_objects,
    plan_config_map,
    revision_object,
)
from segserve_operator.adapters.kube.view import PoolKey, View
from segserve_operator.adapters.kube.write_through import WriteThroughApi

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
KINDS = {(kind.api_version, kind.name): kind for kind in CHILDREN}
GROUP = "main-0"


@dataclass(frozen=True)
class World:
    """A namespace in which a pool's objects are applied; no pods come of them."""

    cluster: Cluster
    api: AsyncKubeClient
    namespace: str

    async def target(self, text: str, **spec: Any) -> PoolContext:
        """Return the target of a pool that is there: what belongs to none would be collected."""
        target = pool_context(text, **spec)
        pool = {"apiVersion": POOLS.api_version, "kind": POOLS.name, "metadata": {"name": target.pool}, "spec": {}}
        made = await self.api.apply(POOLS, self.namespace, pool)
        return replace(target, namespace=self.namespace, uid=made["metadata"]["uid"])

    async def apply(self, manifest: Json) -> Json:
        return await self.api.apply(kind_of(manifest), self.namespace, manifest)

    async def live(self, manifest: Json) -> Json:
        return await self.api.get(kind_of(manifest), self.namespace, manifest["metadata"]["name"])

    async def put(self, manifest: Json) -> Json:
        """Put an object right as the operator does; return it."""
        view = View(CHILDREN)
        view.take(kind_of(manifest), await self.live(manifest))
        key = PoolKey(self.namespace, "default")
        await apply_differing(WriteThroughApi(self.api, view), view, key, [manifest])
        return await self.live(manifest)

    def edit(self, manifest: Json, *operations: Json) -> None:
        """Change an object as somebody else does."""
        kind, name = kind_of(manifest).plural, manifest["metadata"]["name"]
        self.cluster.kubectl(
            "-n", self.namespace, "patch", kind, name, "--type=json", "-p", json.dumps(list(operations))
        )


def kind_of(manifest: Json) -> Kind:
    return KINDS[manifest["apiVersion"], manifest["kind"]]


def without_pods(manifest: Json) -> Json:
    if manifest["kind"] != "Deployment":
        return manifest
    return {**manifest, "spec": {**manifest["spec"], "replicas": 0}}


def written(live: Json) -> Json:
    """Return what changes with a write, and not with what controllers say of an object."""
    metadata = live["metadata"]
    return {"labels": metadata["labels"], "generation": metadata.get("generation"), "spec": live["spec"]}


def rendered(target: PoolContext) -> list[Json]:
    own = coins()
    content = pack([own.model_dump(mode="json", by_alias=True, exclude_none=True)])
    revision = revision_object(
        namespace=target.namespace,
        pool=target.pool,
        model="coins",
        uid=target.uid,
        revision=own.revision,
        assigned=own,
        number=1,
    )
    pool = {"apiVersion": POOLS.api_version, "kind": POOLS.name, "name": target.pool}
    reports = own_report_objects(target, GROUP, [{"metadata": {"name": "a-pod", "uid": target.uid}}])
    for owned in (revision, reports[-1]):
        owned["metadata"]["ownerReferences"][0] |= pool  # an owner that is there, so that it stays
    return [
        *map(without_pods, group_objects(target, GROUP, 2)),
        *reports,
        *map(without_pods, gateway_objects(target)),
        assignment_config_map(target, GROUP, 0, content),
        plan_config_map(target, 0, pack({"routes": [], "servers": []}), ["coins"]),
        revision,
    ]


@pytest.fixture
async def world(cluster: Cluster, namespace: str) -> AsyncIterator[World]:
    async with AsyncKubeClient.connect(cluster.kubeconfig) as api:
        yield World(cluster, api, namespace)


@pytest.mark.parametrize("text", [pytest.param(MINIMAL, id="minimal"), pytest.param(FULL, id="full")])
async def test_every_object_is_taken_as_it_is_and_found_again(world: World, text: str) -> None:
    """Where it was not, every pass would write it again."""
    for manifest in rendered(await world.target(text)):
        applied = await world.apply(manifest)
        assert covers(applied, manifest), applied

        again = await world.apply(manifest)
        assert covers(await world.live(manifest), manifest)
        assert again["metadata"].get("generation") == applied["metadata"].get("generation")


async def test_reports_outlive_the_operators_applies(world: World) -> None:
    target = await world.target(MINIMAL)
    (manifest,) = [
        found
        for found in group_objects(target, GROUP, 1)
        if found["metadata"]["name"] == reports_name("default", GROUP)
    ]
    await world.apply(manifest)
    report = {"binaryData": {"a-pod": "AAAA"}}
    await world.api.patch(CONFIG_MAPS, world.namespace, manifest["metadata"]["name"], report)

    applied = await world.apply(manifest)

    assert applied["binaryData"] == report["binaryData"]


async def test_what_a_pool_no_longer_says_goes(world: World) -> None:
    placed = await world.target(MINIMAL, gateway=pods_with(nodeSelector={"disk": "fast"}, priorityClassName="serving"))
    bare = await world.target(MINIMAL)
    *_, before = map(without_pods, gateway_objects(placed))
    *_, after = map(without_pods, gateway_objects(bare))
    live = await world.apply(before)
    assert not covers(live, after)

    live = await world.apply(after)

    assert not {"nodeSelector", "priorityClassName"} & set(live["spec"]["template"]["spec"])


async def test_what_a_pool_says_in_another_order_is_there_and_no_difference(world: World) -> None:
    variables = [{"name": name, "value": "1"} for name in ("LANG", "LC_ALL", "TZ")]
    first = await world.target(MINIMAL, server=pods_with({"triton": {"env": variables}}))
    second = await world.target(
        MINIMAL, server=pods_with({"triton": {"env": [{"name": "OMP_PLACES", "value": "1"}, *reversed(variables)]}})
    )
    *_, before = map(without_pods, group_objects(first, GROUP, 1))
    *_, after = map(without_pods, group_objects(second, GROUP, 1))
    await world.apply(before)

    live = await world.put(after)
    assert covers(live, after)
    assert written(await world.put(after)) == written(live)


CONTAINERS = "/spec/template/spec/containers"
EDITS: list[tuple[str, str, str, Any]] = [
    ("Deployment", "replace", f"{CONTAINERS}/1/image", "other:1"),
    ("Deployment", "remove", f"{CONTAINERS}/0/livenessProbe", None),
    ("Deployment", "replace", f"{CONTAINERS}/0/readinessProbe", {"exec": {"command": ["true"]}}),
    ("Deployment", "remove", f"{CONTAINERS}/0/env/0", None),
    ("Deployment", "remove", f"{CONTAINERS}/0/volumeMounts/0", None),
    ("Deployment", "remove", "/metadata/ownerReferences", None),
    ("Service", "replace", "/spec/selector/segserve.dev~1pool", "other"),
    ("Role", "add", "/rules/-", {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
    ("RoleBinding", "add", "/subjects/-", {"kind": "ServiceAccount", "name": "other", "namespace": "other"}),
    ("NetworkPolicy", "replace", "/spec/ingress", [{}]),
    ("PodDisruptionBudget", "replace", "/spec/maxUnavailable", 0),
]


@pytest.mark.parametrize(("kind", "what", "path", "value"), EDITS, ids=[f"{e[1]} {e[0]}{e[2]}" for e in EDITS])
async def test_every_edit_is_seen_and_put_right(world: World, kind: str, what: str, path: str, value: Any) -> None:
    objects = map(without_pods, group_objects(await world.target(MINIMAL), GROUP, 1))
    (manifest,) = [found for found in objects if found["kind"] == kind]
    await world.apply(manifest)
    world.edit(manifest, {"op": what, "path": path} | ({} if value is None else {"value": value}))
    assert not covers(await world.live(manifest), manifest)

    assert covers(await world.put(manifest), manifest)
    assert covers(await world.apply(manifest), manifest)


ADDITIONS: list[tuple[str, str, Any]] = [
    ("Deployment", f"{CONTAINERS}/0/env/0", {"name": "OTHER", "value": "1"}),
    ("Deployment", f"{CONTAINERS}/-", {"name": "other", "image": "other:1"}),
    ("Deployment", "/spec/template/spec/volumes/-", {"name": "other", "emptyDir": {}}),
    ("Deployment", "/spec/template/spec/tolerations", [{"key": "gpu", "operator": "Exists"}]),
    ("Deployment", "/spec/template/metadata/labels/team", "vision"),
    ("Service", "/spec/ports/-", {"name": "other", "port": 99, "protocol": "TCP"}),
]


@pytest.mark.parametrize(("kind", "path", "value"), ADDITIONS, ids=[f"{e[0]}{e[1]}" for e in ADDITIONS])
async def test_what_others_add_is_left_alone_at_rest_and_by_repairs(
    world: World, kind: str, path: str, value: Any
) -> None:
    objects = map(without_pods, group_objects(await world.target(MINIMAL), GROUP, 1))
    (manifest,) = [found for found in objects if found["kind"] == kind]
    await world.apply(manifest)
    world.edit(manifest, {"op": "add", "path": path, "value": value})
    added = await world.live(manifest)
    assert covers(added, manifest)
    assert written(await world.put(manifest)) == written(added)

    world.edit(manifest, {"op": "remove", "path": "/metadata/annotations/segserve.dev~1manifest"})
    repaired = await world.put(manifest)
    assert covers(repaired, manifest)
    assert repaired["spec"] == added["spec"]
