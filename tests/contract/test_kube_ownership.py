"""Server-side apply and merge patches, in memory as on a real server: whose field is whose."""

from __future__ import annotations

from fakes.kube_servers import Server, config, deployment, version
from segserve_common.kube.kinds import CONFIG_MAPS, DEPLOYMENTS


async def test_applying_the_same_again_writes_nothing(server: Server, name: str) -> None:
    first = await server.api.apply(CONFIG_MAPS, server.namespace, config(name, key="value"))
    second = await server.api.apply(CONFIG_MAPS, server.namespace, config(name, key="value"))

    assert first == second == await server.api.get(CONFIG_MAPS, server.namespace, name)
    assert first["data"] == {"key": "value"}
    assert (first["apiVersion"], first["kind"]) == ("v1", "ConfigMap")


async def test_a_deployment_applied_again_is_not_written_though_the_server_added_defaults(
    server: Server, name: str
) -> None:
    manifest = deployment(name, one={"env": [{"name": "A", "value": "1"}]})
    first = await server.api.apply(DEPLOYMENTS, server.namespace, manifest)
    second = await server.api.apply(DEPLOYMENTS, server.namespace, manifest)

    assert first["spec"]["progressDeadlineSeconds"] == 600
    assert first["metadata"]["generation"] == second["metadata"]["generation"] == 1


async def test_fields_that_are_no_longer_applied_go_and_those_of_others_stay(server: Server, name: str) -> None:
    labels = {"labels": {"mine": "1", "other": "2"}}
    await server.api.apply(CONFIG_MAPS, server.namespace, config(name, labels, keep="1", drop="2"))
    await server.edit(name, {"theirs": "3"})

    applied = await server.api.apply(CONFIG_MAPS, server.namespace, config(name, {"labels": {"mine": "1"}}, keep="1"))

    assert applied["data"] == {"keep": "1", "theirs": "3"}
    assert applied["metadata"]["labels"] == {"mine": "1"}


async def test_the_last_field_can_go(server: Server, name: str) -> None:
    await server.api.apply(CONFIG_MAPS, server.namespace, config(name, {"labels": {"mine": "1"}}, drop="2"))

    applied = await server.api.apply(CONFIG_MAPS, server.namespace, {"metadata": {"name": name}})

    assert "data" not in applied
    assert "labels" not in applied["metadata"]


async def test_what_another_changed_is_ours_again_when_applied(server: Server, name: str) -> None:
    await server.api.apply(CONFIG_MAPS, server.namespace, config(name, key="ours"))
    await server.edit(name, {"key": "theirs"})

    applied = await server.api.apply(CONFIG_MAPS, server.namespace, config(name, key="ours"))
    dropped = await server.api.apply(CONFIG_MAPS, server.namespace, config(name))

    assert applied["data"] == {"key": "ours"}
    assert "data" not in dropped


async def test_what_another_took_over_stays_when_it_is_no_longer_applied(server: Server, name: str) -> None:
    await server.api.apply(CONFIG_MAPS, server.namespace, config(name, key="ours"))
    await server.edit(name, {"key": "theirs"})

    applied = await server.api.apply(CONFIG_MAPS, server.namespace, config(name))

    assert applied["data"] == {"key": "theirs"}


async def test_what_was_created_or_patched_stays_when_it_is_not_applied(server: Server, name: str) -> None:
    await server.api.create(CONFIG_MAPS, server.namespace, config(name, created="1"))
    await server.api.patch(CONFIG_MAPS, server.namespace, name, {"data": {"patched": "2"}})

    applied = await server.api.apply(CONFIG_MAPS, server.namespace, config(name, applied="3"))

    assert applied["data"] == {"created": "1", "patched": "2", "applied": "3"}


async def test_items_of_lists_are_found_by_their_names(server: Server, name: str) -> None:
    both = deployment(name, one={"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}, two={})
    await server.api.apply(DEPLOYMENTS, server.namespace, both)

    one = deployment(name, one={"env": [{"name": "B", "value": "3"}]})
    applied = await server.api.apply(DEPLOYMENTS, server.namespace, one)

    [container] = applied["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "B", "value": "3"}]
    assert applied["metadata"]["generation"] == 2


async def test_a_merge_patch_removes_what_is_null(server: Server, name: str) -> None:
    await server.api.create(CONFIG_MAPS, server.namespace, config(name, a="1", b="2"))

    patched = await server.api.patch(CONFIG_MAPS, server.namespace, name, {"data": {"a": None, "c": "3"}})

    assert patched["data"] == {"b": "2", "c": "3"}


async def test_a_patch_that_changes_nothing_writes_nothing(server: Server, name: str) -> None:
    made = await server.api.create(CONFIG_MAPS, server.namespace, config(name, a="1"))

    patched = await server.api.patch(CONFIG_MAPS, server.namespace, name, {"data": {"a": "1", "b": None}})

    assert version(patched) == version(made)
