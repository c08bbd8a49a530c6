"""An operator of a whole cluster works where it is named or a namespace has the label, and reads elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from segserve_common.kube.kinds import MODELS, NAMESPACES, POOLS, Json, Kind
from segserve_operator.adapters.kube.api import Api
from segserve_operator.adapters.kube.namespaces import ENABLED, EnabledNamespaces, pools_within
from segserve_operator.adapters.kube.view import PoolKey, View
from segserve_operator.handlers import feed_of_namespaces


class Labels:
    """Namespaces by name, each with its labels."""

    def __init__(self, **labels: Mapping[str, str]) -> None:
        self.labels = dict(labels)

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Json]:
        assert (kind, namespace) == (NAMESPACES, None)
        return [
            {"metadata": {"name": name, "labels": dict(own)}}
            for name, own in self.labels.items()
            if labels.items() <= own.items()
        ]


def pool(namespace: str, uid: str = "u1") -> Json:
    return {"metadata": {"name": "default", "namespace": namespace, "uid": uid, "resourceVersion": "5"}}


def viewed(enabled: EnabledNamespaces, *namespaces: str) -> View:
    view = View((MODELS, POOLS), enabled)
    for number, namespace in enumerate(namespaces):
        view.take(POOLS, pool(namespace, f"u{number}"))
    return view


def test_pools_of_a_namespace_that_nobody_enabled_are_read_and_left_alone() -> None:
    view = viewed(EnabledNamespaces(["vision"]), "vision", "stranger")

    assert view.pools() == {PoolKey("vision", "default")}
    assert view.get(POOLS, "stranger", "default") is not None


def test_an_operator_of_named_namespaces_works_in_all_that_it_reads() -> None:
    view = View((MODELS, POOLS))
    view.take(POOLS, pool("lab"))

    assert view.pools() == {PoolKey("lab", "default")}


async def test_only_the_very_label_enables_a_namespace() -> None:
    enabled = EnabledNamespaces(["vision"])
    api = Labels(lab=ENABLED, off={"segserve.dev/enabled": "false"}, other={"enabled": "true"})

    assert await enabled.read(cast("Api", api)) == {"lab"}
    assert [name in enabled for name in ("vision", "lab", "off", "other")] == [True, True, False, False]


async def test_a_label_that_goes_while_nobody_watches_is_missed_at_the_next_look_and_names_stay() -> None:
    enabled, api = EnabledNamespaces(["vision"]), Labels(lab=ENABLED, vision=ENABLED)
    await enabled.read(cast("Api", api))
    api.labels = {"lab": {}, "vision": {}}

    assert await enabled.read(cast("Api", api)) == frozenset()
    assert ("lab" in enabled, "vision" in enabled) == (False, True)


async def test_pools_are_reconciled_from_the_moment_that_their_namespace_gets_the_label() -> None:
    enabled = EnabledNamespaces(["vision"])
    view = viewed(enabled, "vision", "lab")
    queue: list[PoolKey] = []
    feed = feed_of_namespaces(enabled, view, queue.append)

    await feed(event={"type": "ADDED", "object": {"metadata": {"name": "lab"}}})
    assert queue == [PoolKey("lab", "default")]
    assert pools_within(view, {"lab"}) == {PoolKey("lab", "default")}

    await feed(event={"type": "DELETED", "object": {"metadata": {"name": "lab"}}})
    assert view.pools() == {PoolKey("vision", "default")}
