from __future__ import annotations

import copy
from typing import Any

from fakes.cases import cases
from fakes.pools import FULL, MINIMAL, pool_context
from segserve_operator.adapters.kube.drift import covers
from segserve_operator.adapters.kube.objects import gateway_objects, group_objects

MANIFESTS = [
    manifest
    for text in (MINIMAL, FULL)
    for manifest in (*group_objects(pool_context(text), "main-0", 2), *gateway_objects(pool_context(text)))
]


def title(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def changed(manifest: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    live = copy.deepcopy(manifest)
    at: Any = live
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = "changed by hand"
    return live


def test_what_was_written_is_there() -> None:
    assert MANIFESTS
    assert [title(each) for each in MANIFESTS if not covers(copy.deepcopy(each), each)] == []


def test_what_was_not_written_is_not_there() -> None:
    assert [title(each) for each in MANIFESTS if covers({}, each)] == []


def test_any_value_that_is_changed_is_seen() -> None:
    unseen = [(title(each), path) for each in MANIFESTS for path in leaves(each) if covers(changed(each, path), each)]

    assert unseen == []


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [path]


@cases(
    ("live", "desired"),
    {
        "fields of others do not count": ({"a": 1, "status": {}}, {"a": 1}),
        "nor do defaults": ({"spec": {"a": 1, "dnsPolicy": "ClusterFirst"}}, {"spec": {"a": 1}}),
        "nor within a list": ([{"name": "a", "protocol": "TCP"}], [{"name": "a"}]),
        "an empty list is not stored": ({}, {"env": []}),
        "an empty text is not stored": ({"name": "A"}, {"name": "A", "value": ""}),
        "what is false is not stored": ({}, {"readOnly": False, "hostPID": False}),
        "an empty object is stored": ({"emptyDir": {}}, {"emptyDir": {}}),
        "half a processor": ({"limits": {"cpu": "500m"}}, {"limits": {"cpu": "0.5"}}),
        "a gibibyte": ({"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1024Mi"}}),
        "two processors": ({"requests": {"cpu": "2"}}, {"requests": {"cpu": 2}}),
        "a volume's size": ({"emptyDir": {"sizeLimit": "512Mi"}}, {"emptyDir": {"sizeLimit": "0.5Gi"}}),
    },
)
def test_it_is_there(live: Any, desired: Any) -> None:
    assert covers(live, desired)


@cases(
    ("live", "desired"),
    {
        "another value": ({"a": 1}, {"a": 2}),
        "nothing": ({}, {"a": {"b": 1}}),
        "null": (None, {"a": 1}),
        "another type": ({"a": "1"}, {"a": {"b": 1}}),
        "one more container": ([{"name": "a"}, {"name": "b"}], [{"name": "a"}]),
        "one container less": ([{"name": "a"}], [{"name": "a"}, {"name": "b"}]),
        "another order of arguments": (["a", "b"], ["b", "a"]),
        "not empty": ({"env": [{"name": "A", "value": "x"}]}, {"env": [{"name": "A", "value": ""}]}),
        "true, not false": ({"hostPID": True}, {"hostPID": False}),
        "some, not all": ({"namespaceSelector": {"matchLabels": {"a": "b"}}}, {"namespaceSelector": {}}),
        "another amount": ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "2"}}),
        "no amount": ({"limits": {}}, {"limits": {"cpu": "2"}}),
        "a text that looks like an amount": ({"value": "1000m"}, {"value": "1"}),
        "no size": ({"emptyDir": {}}, {"emptyDir": {"sizeLimit": "1Gi"}}),
    },
)
def test_it_is_not_there(live: Any, desired: Any) -> None:
    assert not covers(live, desired)
