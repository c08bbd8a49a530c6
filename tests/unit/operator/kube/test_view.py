"""The view never goes back in time, knows what belongs to which pool, and finds what nobody told it of."""

from __future__ import annotations

import pytest

from fakes.kube import FakeKube
from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, POOLS, Json
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY, GROUP_LABEL, MANAGED_LABELS, POOL_LABEL, SERVER
from segserve_operator.adapters.kube.children import find_drift
from segserve_operator.adapters.kube.view import KnownObjects, PoolKey, View, audit, fill, read_known
from segserve_operator.adapters.kube.write_through import WriteThroughApi

KEY = PoolKey("ml", "default")


def config_map(name: str = "plan", *, version: int = 5, uid: str = "u1", pool: str = "default", text: str = "") -> Json:
    labels = {**MANAGED_LABELS, POOL_LABEL: pool}
    metadata = {"name": name, "namespace": "ml", "uid": uid, "resourceVersion": str(version), "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": text}}


@pytest.fixture
def view() -> View:
    return View((MODELS, POOLS, CONFIG_MAPS))


def text_of(view: View, name: str = "plan") -> str | None:
    found = view.get(CONFIG_MAPS, "ml", name)
    return found["data"]["text"] if found is not None else None


def test_an_older_state_of_an_object_never_replaces_a_newer_one(view: View) -> None:
    view.take(CONFIG_MAPS, config_map(version=10, text="new"))

    assert view.take(CONFIG_MAPS, config_map(version=9, text="old")) == frozenset()
    assert text_of(view) == "new"


def test_versions_are_numbers_not_texts(view: View) -> None:
    view.take(CONFIG_MAPS, config_map(version=9, text="old"))

    assert view.take(CONFIG_MAPS, config_map(version=10, text="new")) == {KEY}
    assert text_of(view) == "new"


def test_an_object_that_is_gone_is_not_brought_back_by_a_late_answer(view: View) -> None:
    view.take(CONFIG_MAPS, config_map(version=5))
    view.drop(CONFIG_MAPS, config_map(version=8))

    view.take(CONFIG_MAPS, config_map(version=7))

    assert text_of(view) is None


def test_an_object_that_agreed_with_its_manifest_differs_after_a_change_of_either(view: View) -> None:
    manifest = {**config_map(text="one"), "metadata": {"name": "plan"}}
    view.take(CONFIG_MAPS, config_map(version=5, text="one"))
    assert [list(find_drift(view, KEY, [manifest])) for _ in range(2)] == [[], []]

    other = {**manifest, "data": {"text": "two"}}
    (found,) = find_drift(view, KEY, [other])
    assert found[0] is other

    view.take(CONFIG_MAPS, config_map(version=6, text="by hand"))
    (found,) = find_drift(view, KEY, [manifest])
    assert found == (manifest, view.get(CONFIG_MAPS, "ml", "plan"))

    view.drop(CONFIG_MAPS, config_map(version=7))
    assert list(find_drift(view, KEY, [manifest])) == [(manifest, None)]
    assert view.covering == {}


def test_an_object_that_lost_our_labels_is_back_once_it_has_them_again(view: View) -> None:
    """A watch by labels tells of both as of an end and a beginning; the uid stays."""
    view.take(CONFIG_MAPS, config_map(version=5))
    view.drop(CONFIG_MAPS, config_map(version=8))

    assert view.take(CONFIG_MAPS, config_map(version=9, text="repaired")) == {KEY}
    assert text_of(view) == "repaired"


def test_an_end_that_is_older_than_what_is_known_ends_nothing(view: View) -> None:
    view.take(CONFIG_MAPS, config_map(version=9, text="repaired"))

    assert view.drop(CONFIG_MAPS, config_map(version=8)) == frozenset()
    assert text_of(view) == "repaired"


def test_the_end_of_a_former_object_of_the_name_does_not_touch_the_present_one(view: View) -> None:
    view.take(CONFIG_MAPS, config_map(version=9, uid="u2", text="anew"))

    assert view.drop(CONFIG_MAPS, config_map(version=8, uid="u1")) == frozenset()
    assert text_of(view) == "anew"


def test_a_model_that_moves_to_another_pool_is_news_for_both(view: View) -> None:
    model = {"metadata": {"name": "coins", "namespace": "ml", "uid": "m", "resourceVersion": "1"}, "spec": {}}
    view.take(MODELS, model)
    moved = {**model, "metadata": {**model["metadata"], "resourceVersion": "2"}, "spec": {"pool": "gpu"}}

    assert view.take(MODELS, moved) == {KEY, PoolKey("ml", "gpu")}
    assert view.of_pool(MODELS, KEY) == []
    assert len(view.of_pool(MODELS, PoolKey("ml", "gpu"))) == 1


def test_what_takes_memory_and_is_never_read_is_left_out(view: View) -> None:
    found = config_map()
    found["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    found["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "yes"}
    view.take(CONFIG_MAPS, found)

    (seen,) = view.of_pool(CONFIG_MAPS, KEY)
    assert "managedFields" not in seen["metadata"]
    assert seen["metadata"]["annotations"] == {"kept": "yes"}


def test_a_pool_is_known_as_long_as_anything_belongs_to_it(view: View) -> None:
    view.take(CONFIG_MAPS, config_map())
    assert view.pools() == {KEY}
    assert view.has_pool(KEY)

    view.drop(CONFIG_MAPS, config_map())
    assert view.pools() == frozenset()
    assert not view.has_pool(KEY)


async def filled() -> tuple[FakeKube, View]:
    kube, view = FakeKube(), View((MODELS, POOLS, CONFIG_MAPS))
    for name in ("one", "two"):
        kube.put(CONFIG_MAPS, config_map(name, text=name) | {"metadata": _new(name)})
    await fill(view, kube, [None])
    return kube, view


def _new(name: str) -> Json:
    return {"name": name, "namespace": "ml", "labels": {**MANAGED_LABELS, POOL_LABEL: "default"}}


async def test_an_audit_finds_changes_new_objects_and_ends_that_no_event_told_of() -> None:
    kube, view = await filled()
    kube.edit(CONFIG_MAPS, "ml", "one", {"data": {"text": "changed"}})
    kube.vanish(CONFIG_MAPS, "ml", "two")
    kube.put(CONFIG_MAPS, config_map(text="three") | {"metadata": _new("three")})

    assert await audit(view, kube, [None]) == {KEY}
    assert (text_of(view, "one"), text_of(view, "two"), text_of(view, "three")) == ("changed", None, "three")


async def test_an_audit_that_finds_nothing_reads_no_object() -> None:
    kube, view = await filled()

    assert await audit(view, kube, ["ml"]) == frozenset()


async def test_an_audit_notices_an_object_that_was_made_anew_under_its_name() -> None:
    kube, view = await filled()
    kube.vanish(CONFIG_MAPS, "ml", "one")
    kube.put(CONFIG_MAPS, config_map(text="anew") | {"metadata": _new("one")})

    await audit(view, kube, [None])

    assert text_of(view, "one") == "anew"


async def test_an_audit_lets_go_of_what_lost_its_label() -> None:
    kube, view = await filled()
    kube.edit(CONFIG_MAPS, "ml", "one", {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}})

    await audit(view, kube, [None])

    assert text_of(view, "one") is None


async def test_own_writes_are_seen_before_their_event_comes() -> None:
    kube, view = await filled()
    api = WriteThroughApi(kube, view)
    await api.create(CONFIG_MAPS, "ml", config_map() | {"metadata": _new("held") | {"finalizers": ["ml/held"]}})

    await api.patch(CONFIG_MAPS, "ml", "one", {"data": {"text": "mine"}})
    for name in ("two", "held"):
        await api.delete(CONFIG_MAPS, "ml", name)

    assert text_of(view, "one") == "mine"
    assert view.get(CONFIG_MAPS, "ml", "two") is None
    held = view.get(CONFIG_MAPS, "ml", "held")
    assert "deletionTimestamp" in held["metadata"]


# What is known


def labelled(name: str, **labels: str) -> Json:
    found = config_map(name, uid=name)
    found["metadata"]["labels"] |= labels
    return found


def pool_of(version: int = 1) -> Json:
    return {"metadata": {"name": "default", "namespace": "ml", "uid": "p", "resourceVersion": str(version)}, "spec": {}}


def created(item: Json) -> Json:
    given = {key: item["metadata"][key] for key in ("name", "namespace", "labels")}
    return {**item, "metadata": given}


PLAN = labelled("segserve-default--gateway--plan-0", **{COMPONENT_LABEL: GATEWAY})


async def test_what_came_before_its_pool_is_read_again_once_the_pool_is_there() -> None:
    kube, view = FakeKube(), View((MODELS, POOLS, CONFIG_MAPS), known=KnownObjects())
    kube.put(CONFIG_MAPS, created(PLAN))
    await fill(view, kube, [None])
    assert view.get(CONFIG_MAPS, "ml", PLAN["metadata"]["name"]) is None
    assert view.pools() == frozenset()

    assert view.take(POOLS, pool_of()) == {KEY}
    await read_known(view, kube, KEY)

    assert [found["metadata"]["name"] for found in view.of_pool(CONFIG_MAPS, KEY)] == [PLAN["metadata"]["name"]]
    assert await audit(view, kube, [None]) == frozenset({KEY})  # of the pool, which the server does not have
    assert await audit(view, kube, [None]) == frozenset()


async def test_an_audit_reads_nothing_of_what_is_not_known_and_forgets_it_with_its_end() -> None:
    kube, view = FakeKube(), View((MODELS, POOLS, CONFIG_MAPS), known=KnownObjects())
    kube.put(CONFIG_MAPS, created(PLAN))
    await fill(view, kube, [None])
    kube.get = None  # type: ignore[assignment, method-assign]

    assert await audit(view, kube, [None]) == frozenset()
    view.drop(CONFIG_MAPS, kube.all(CONFIG_MAPS, "ml")[0])
    kube.vanish(CONFIG_MAPS, "ml", PLAN["metadata"]["name"])

    assert await audit(view, kube, [None]) == frozenset()


def test_a_config_map_of_a_pool_is_known_by_the_name_that_its_group_gives_it() -> None:
    view = View((MODELS, POOLS, CONFIG_MAPS), known=KnownObjects(max_kept_bytes=1000))
    view.take(POOLS, pool_of())
    server = {COMPONENT_LABEL: SERVER, GROUP_LABEL: "main-1"}
    for each in (
        PLAN,
        labelled("segserve-default--main-1--assignment-3", **server),
        labelled("segserve-default--main-1--reports", **server),
        labelled("segserve-default--main-2--reports", **server),
        labelled("segserve-other--gateway--plan-0", **{COMPONENT_LABEL: GATEWAY}),
        labelled("anything", **server),
    ):
        view.take(CONFIG_MAPS, each)

    known = [found["metadata"]["name"].removeprefix("segserve-default--") for found in view.of_pool(CONFIG_MAPS, KEY)]
    assert known == ["gateway--plan-0", "main-1--assignment-3", "main-1--reports"]


def test_config_maps_of_a_namespace_are_known_up_to_a_size() -> None:
    view = View((MODELS, POOLS, CONFIG_MAPS), known=KnownObjects(max_kept_bytes=1000))
    view.take(POOLS, pool_of())
    for shard in range(4):
        each = labelled(f"segserve-default--gateway--plan-{shard}", **{COMPONENT_LABEL: GATEWAY})
        view.take(CONFIG_MAPS, {**each, "data": {"text": "x" * 400}})
    names = [found["metadata"]["name"] for found in view.of_pool(CONFIG_MAPS, KEY)]
    assert len(names) == 2

    gone = view.get(CONFIG_MAPS, "ml", names[0])
    assert gone is not None
    view.drop(CONFIG_MAPS, gone)
    later = labelled("segserve-default--gateway--plan-3", **{COMPONENT_LABEL: GATEWAY})
    later["metadata"]["resourceVersion"] = "6"
    assert view.take(CONFIG_MAPS, later) == {KEY}
