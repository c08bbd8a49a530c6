"""An API server, in memory as a real one: identity, preconditions, lists, refusals."""

from __future__ import annotations

import base64

import pytest

from fakes.kube_servers import THINGS, UNSERVED, Server, config, gone, thing, version
from segserve_common.api_errors import ConflictError, InvalidError, NotFoundError
from segserve_common.kube.kinds import CONFIG_MAPS, Json, Kind


async def test_a_version_that_is_no_longer_the_newest_is_refused(server: Server, name: str) -> None:
    old = await server.api.apply(CONFIG_MAPS, server.namespace, config(name, key="1"))
    new = await server.api.apply(CONFIG_MAPS, server.namespace, config(name, key="2"))
    stale = {"resourceVersion": version(old)}

    with pytest.raises(ConflictError):
        await server.api.apply(CONFIG_MAPS, server.namespace, config(name, stale, key="3"))
    with pytest.raises(ConflictError):
        await server.api.patch(CONFIG_MAPS, server.namespace, name, {"metadata": stale, "data": {"key": "3"}})

    assert await server.api.get(CONFIG_MAPS, server.namespace, name) == new
    fresh = {"resourceVersion": version(new)}
    newer = await server.api.patch(CONFIG_MAPS, server.namespace, name, {"metadata": fresh, "data": {"key": "3"}})
    newest = config(name, {"resourceVersion": version(newer)}, key="4")
    assert (await server.api.apply(CONFIG_MAPS, server.namespace, newest))["data"] == {"key": "4"}


async def test_a_status_patch_of_an_old_version_is_refused(server: Server, name: str) -> None:
    old = await server.api.create(THINGS, server.namespace, thing(name, spec={"a": 1}))
    await server.api.patch(THINGS, server.namespace, name, {"spec": {"a": 2}})

    patch = {"metadata": {"resourceVersion": version(old)}, "status": {"seen": 1}}
    with pytest.raises(ConflictError):
        await server.api.patch(THINGS, server.namespace, name, patch, status=True)

    assert "status" not in await server.api.get(THINGS, server.namespace, name)


async def test_a_version_does_not_keep_a_deleted_object_from_being_made_anew_but_a_uid_does(
    server: Server, name: str
) -> None:
    made = await server.api.apply(CONFIG_MAPS, server.namespace, config(name, key="1"))
    await server.api.delete(CONFIG_MAPS, server.namespace, name)
    identity = {"resourceVersion": version(made), "uid": made["metadata"]["uid"]}

    with pytest.raises(ConflictError):
        await server.api.apply(CONFIG_MAPS, server.namespace, config(name, identity, key="1"))
    with pytest.raises(NotFoundError):
        await server.api.patch(CONFIG_MAPS, server.namespace, name, {"metadata": identity, "data": {"key": "1"}})
    assert await gone(server, CONFIG_MAPS, name)

    del identity["uid"]
    await server.api.apply(CONFIG_MAPS, server.namespace, config(name, identity, key="1"))
    assert not await gone(server, CONFIG_MAPS, name)


async def test_a_uid_of_an_earlier_object_is_refused(server: Server, name: str) -> None:
    first = await server.api.create(CONFIG_MAPS, server.namespace, config(name, key="1"))
    await server.api.delete(CONFIG_MAPS, server.namespace, name)
    await server.api.create(CONFIG_MAPS, server.namespace, config(name, key="2"))
    change = config(name, {"uid": first["metadata"]["uid"]}, key="3")

    with pytest.raises(ConflictError):
        await server.api.apply(CONFIG_MAPS, server.namespace, change)
    with pytest.raises(ConflictError):
        await server.api.patch(CONFIG_MAPS, server.namespace, name, change)

    assert (await server.api.get(CONFIG_MAPS, server.namespace, name))["data"] == {"key": "2"}


async def test_a_status_of_an_earlier_object_is_refused_for_its_version_and_not_for_its_uid(
    server: Server, name: str
) -> None:
    first = await server.api.create(THINGS, server.namespace, thing(name))
    await server.api.delete(THINGS, server.namespace, name)
    await server.api.create(THINGS, server.namespace, thing(name))
    patch = {"metadata": {"resourceVersion": version(first)}, "status": {"of": "the first"}}

    with pytest.raises(ConflictError):
        await server.api.patch(THINGS, server.namespace, name, patch, status=True)
    assert "status" not in await server.api.get(THINGS, server.namespace, name)

    patch["metadata"] = {"uid": first["metadata"]["uid"]}
    patched = await server.api.patch(THINGS, server.namespace, name, patch, status=True)
    assert patched["metadata"]["uid"] != first["metadata"]["uid"]


async def test_an_object_is_created_once(server: Server, name: str) -> None:
    await server.api.create(CONFIG_MAPS, server.namespace, config(name, key="1"))

    with pytest.raises(ConflictError):
        await server.api.create(CONFIG_MAPS, server.namespace, config(name, key="2"))

    assert (await server.api.get(CONFIG_MAPS, server.namespace, name))["data"] == {"key": "1"}


async def test_what_is_not_there_is_not_found(server: Server, name: str) -> None:
    with pytest.raises(NotFoundError):
        await server.api.get(CONFIG_MAPS, server.namespace, name)
    with pytest.raises(NotFoundError):
        await server.api.patch(CONFIG_MAPS, server.namespace, name, {"data": {}})
    with pytest.raises(NotFoundError):
        await server.api.patch(THINGS, server.namespace, name, {"status": {}}, status=True)
    assert not await server.api.delete(CONFIG_MAPS, server.namespace, name)
    assert not await server.api.delete(CONFIG_MAPS, server.namespace, name, uid="none")


async def test_only_the_object_of_the_uid_is_deleted(server: Server, name: str) -> None:
    made = await server.api.create(CONFIG_MAPS, server.namespace, config(name))

    other = "11111111-1111-1111-1111-111111111111"
    assert not await server.api.delete(CONFIG_MAPS, server.namespace, name, uid=other)
    assert not await gone(server, CONFIG_MAPS, name)
    assert not await server.api.delete(CONFIG_MAPS, server.namespace, name, uid=made["metadata"]["uid"])
    assert await gone(server, CONFIG_MAPS, name)


async def test_lists_select_by_all_labels(server: Server, name: str) -> None:
    for suffix, labels in (("a", {"of": name}), ("b", {"of": name, "more": "1"}), ("c", {"more": "1"})):
        await server.api.create(CONFIG_MAPS, server.namespace, config(f"{name}-{suffix}", {"labels": labels}))

    async def names(namespace: str | None, labels: Json) -> list[str]:
        found = await server.api.list(CONFIG_MAPS, namespace, labels)
        assert all((item["apiVersion"], item["kind"]) == ("v1", "ConfigMap") for item in found)
        assert not any("managedFields" in item["metadata"] for item in found)
        return [item["metadata"]["name"] for item in found]

    assert await names(server.namespace, {"of": name}) == [f"{name}-a", f"{name}-b"]
    assert await names(None, {"of": name, "more": "1"}) == [f"{name}-b"]
    assert await names("another", {"of": name}) == []


@pytest.mark.parametrize("kind", [CONFIG_MAPS, THINGS], ids=["built in", "custom"])
async def test_versions_are_those_of_the_objects(server: Server, name: str, kind: Kind) -> None:
    labels = {"labels": {"of": name}}
    for suffix in ("a", "b"):
        await server.api.create(kind, server.namespace, {**thing(f"{name}-{suffix}", metadata=labels), **_typed(kind)})
    await server.api.patch(kind, server.namespace, f"{name}-b", {"metadata": {"annotations": {"x": "y"}}})

    found = await server.api.list(kind, server.namespace, labels["labels"])
    versions = await server.api.versions(kind, None, labels["labels"])

    assert versions == {(server.namespace, item["metadata"]["name"]): version(item) for item in found}
    assert len(versions) == 2


def _typed(kind: Kind) -> Json:
    return {"apiVersion": kind.api_version, "kind": kind.name}


async def test_versions_grow(server: Server, name: str) -> None:
    seen = [version(await server.api.apply(CONFIG_MAPS, server.namespace, config(name, n=str(n)))) for n in range(5)]

    assert sorted(seen, key=int) == seen
    assert len(set(seen)) == 5


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_config_map_that_is_too_large_is_refused(server: Server, name: str) -> None:
    manifest = config(name) | {"binaryData": {"content": base64.b64encode(bytes(1024 * 1024 + 1)).decode()}}

    with pytest.raises(InvalidError):
        await server.api.apply(CONFIG_MAPS, server.namespace, manifest)

    manifest["binaryData"] = {"content": base64.b64encode(bytes(1024 * 1024)).decode()}
    await server.api.apply(CONFIG_MAPS, server.namespace, manifest)


async def test_a_manifest_of_another_namespace_is_refused(server: Server, name: str) -> None:
    with pytest.raises(InvalidError):
        await server.api.create(CONFIG_MAPS, server.namespace, config(name, {"namespace": "another"}))
    with pytest.raises(InvalidError):
        await server.api.apply(CONFIG_MAPS, server.namespace, config(name, {"namespace": "another"}))


async def test_kinds_that_are_not_served_are_told(server: Server, name: str) -> None:
    assert await server.api.has(CONFIG_MAPS)
    assert await server.api.has(THINGS)
    assert not await server.api.has(UNSERVED)
    with pytest.raises(NotFoundError):
        await server.api.list(UNSERVED, None, {})
    with pytest.raises(NotFoundError):
        await server.api.apply(UNSERVED, server.namespace, {"metadata": {"name": name}})
