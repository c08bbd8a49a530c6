"""An object's life, in memory as on a real server: generations, status, finalizers, owners, what never changes."""

from __future__ import annotations

import pytest

from fakes.kube_servers import THINGS, Server, config, deployment, gone, thing
from fakes.waiting import eventually
from segserve_common.api_errors import InvalidError, NotFoundError
from segserve_common.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, LEASES, REVISIONS, ROLE_BINDINGS
from segserve_operator.adapters.kube.lease import LeaderLease


async def test_a_finalizer_keeps_a_deleted_object_until_it_is_taken_off(server: Server, name: str) -> None:
    held = {"finalizers": ["segserve.dev/test"]}
    made = await server.api.create(THINGS, server.namespace, thing(name, metadata=held, spec={"a": 1}))

    assert await server.api.delete(THINGS, server.namespace, name)
    deleted = await server.api.get(THINGS, server.namespace, name)
    assert await server.api.delete(THINGS, server.namespace, name)
    again = await server.api.get(THINGS, server.namespace, name)

    assert deleted["metadata"]["deletionTimestamp"]
    assert deleted["metadata"]["generation"] == made["metadata"]["generation"] + 1
    assert again == deleted
    await server.api.patch(THINGS, server.namespace, name, {"status": {"still": "here"}}, status=True)
    more = {"metadata": {"finalizers": ["segserve.dev/test", "segserve.dev/more"]}}
    with pytest.raises(InvalidError):
        await server.api.patch(THINGS, server.namespace, name, more)
    await server.api.patch(THINGS, server.namespace, name, {"metadata": {"finalizers": None}})
    assert await gone(server, THINGS, name)


async def test_a_generation_counts_changes_of_the_spec_alone(server: Server, name: str) -> None:
    async def generation() -> int:
        return int((await server.api.get(THINGS, server.namespace, name))["metadata"]["generation"])

    await server.api.create(THINGS, server.namespace, thing(name, spec={"a": 1}, status={"ignored": True}))
    assert await generation() == 1
    await server.api.patch(THINGS, server.namespace, name, {"metadata": {"labels": {"a": "b"}}})
    await server.api.patch(THINGS, server.namespace, name, {"spec": {"a": 1}})
    await server.api.patch(THINGS, server.namespace, name, {"status": {"b": 1}}, status=True)
    assert await generation() == 1
    await server.api.patch(THINGS, server.namespace, name, {"spec": {"a": 2}})
    assert await generation() == 2
    await server.api.apply(THINGS, server.namespace, thing(name, spec={"a": 3}))
    assert await generation() == 3


async def test_status_and_spec_are_written_apart(server: Server, name: str) -> None:
    made = await server.api.create(THINGS, server.namespace, thing(name, spec={"a": 1}, status={"no": 1}))
    assert "status" not in made

    everything = {"metadata": {"labels": {"no": "1"}}, "spec": {"a": 2}, "status": {"yes": 1, "old": 1}}
    await server.api.patch(THINGS, server.namespace, name, everything, status=True)
    await server.api.patch(THINGS, server.namespace, name, {"status": {"old": None}}, status=True)
    await server.api.patch(THINGS, server.namespace, name, {"status": {"no": 1}})
    applied = await server.api.apply(THINGS, server.namespace, thing(name, spec={"b": 1}, status={"no": 1}))

    assert applied["status"] == {"yes": 1}
    assert applied["spec"] == {"a": 1, "b": 1}
    assert "labels" not in applied["metadata"]


async def test_a_kind_without_a_status_of_its_own_has_no_such_endpoint(server: Server, name: str) -> None:
    await server.api.create(CONFIG_MAPS, server.namespace, config(name))

    with pytest.raises(NotFoundError):
        await server.api.patch(CONFIG_MAPS, server.namespace, name, {"status": {}}, status=True)


async def test_a_revision_never_changes(server: Server, name: str) -> None:
    manifest = {"metadata": {"name": name}, "revision": 1, "data": {"network": "one"}}
    await server.api.create(REVISIONS, server.namespace, manifest)

    with pytest.raises(InvalidError):
        await server.api.apply(REVISIONS, server.namespace, {**manifest, "data": {"network": "two"}})
    with pytest.raises(InvalidError):
        await server.api.patch(REVISIONS, server.namespace, name, {"data": {"network": "two"}})

    assert (await server.api.get(REVISIONS, server.namespace, name))["data"] == {"network": "one"}
    labelled = await server.api.patch(REVISIONS, server.namespace, name, {"metadata": {"labels": {"a": "b"}}})
    assert labelled["metadata"]["labels"] == {"a": "b"}


async def test_selectors_and_bound_roles_never_change(server: Server, name: str) -> None:
    await server.api.apply(DEPLOYMENTS, server.namespace, deployment(name, one={}))
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "one"}
    await server.api.apply(ROLE_BINDINGS, server.namespace, {"metadata": {"name": name}, "roleRef": role})

    other = deployment(name, one={})
    other["spec"]["selector"] = {"matchLabels": {"app": "another"}}
    other["spec"]["template"]["metadata"]["labels"] = {"app": "another"}
    with pytest.raises(InvalidError):
        await server.api.apply(DEPLOYMENTS, server.namespace, other)
    bound = {"metadata": {"name": name}, "roleRef": {**role, "name": "two"}}
    with pytest.raises(InvalidError):
        await server.api.apply(ROLE_BINDINGS, server.namespace, bound)


async def test_what_is_owned_goes_with_its_last_owner(server: Server, name: str) -> None:
    owners = [
        await server.api.create(CONFIG_MAPS, server.namespace, config(f"{name}-{suffix}")) for suffix in ("a", "b")
    ]
    references = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
        for owner in owners
    ]
    await server.api.apply(CONFIG_MAPS, server.namespace, config(f"{name}-x", {"ownerReferences": references[:1]}))
    await server.api.apply(CONFIG_MAPS, server.namespace, config(f"{name}-y", {"ownerReferences": references}))

    await server.api.delete(CONFIG_MAPS, server.namespace, f"{name}-a")
    server.collect()
    await eventually(lambda: gone(server, CONFIG_MAPS, f"{name}-x"), "it is gone")
    assert not await gone(server, CONFIG_MAPS, f"{name}-y")
    await server.api.delete(CONFIG_MAPS, server.namespace, f"{name}-b")
    server.collect()
    await eventually(lambda: gone(server, CONFIG_MAPS, f"{name}-y"), "it is gone")


async def test_a_lease_is_held_by_one_and_handed_over(server: Server, name: str) -> None:
    first, second = (LeaderLease(server.api, server.namespace, name, identity) for identity in ("a", "b"))

    assert [await first.attempt(), await second.attempt(), await first.attempt()] == [True, False, True]
    assert (first.is_held(), second.is_held()) == (True, False)
    await first.release()
    assert [await second.attempt(), await first.attempt(), await second.attempt()] == [True, False, True]

    assert (first.is_held(), second.is_held()) == (False, True)
    spec = (await server.api.get(LEASES, server.namespace, name))["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("b", 1)
