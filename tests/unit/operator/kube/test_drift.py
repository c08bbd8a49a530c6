from __future__ import annotations

import copy
from typing import Any

import pytest

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


@pytest.mark.parametrize(
    ("live", "desired"),
    [
        pytest.param({"a": 1, "status": {}}, {"a": 1}, id="fields of others do not count"),
        pytest.param({"spec": {"a": 1, "dnsPolicy": "ClusterFirst"}}, {"spec": {"a": 1}}, id="nor do defaults"),
        pytest.param([{"name": "a", "protocol": "TCP"}], [{"name": "a"}], id="nor within a list"),
        pytest.param({}, {"env": []}, id="an empty list is not stored"),
        pytest.param({"name": "A"}, {"name": "A", "value": ""}, id="an empty text is not stored"),
        pytest.param({}, {"readOnly": False, "hostPID": False}, id="what is false is not stored"),
        pytest.param({"emptyDir": {}}, {"emptyDir": {}}, id="an empty object is stored"),
        pytest.param({"limits": {"cpu": "500m"}}, {"limits": {"cpu": "0.5"}}, id="half a processor"),
        pytest.param({"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1024Mi"}}, id="a gibibyte"),
        pytest.param({"requests": {"cpu": "2"}}, {"requests": {"cpu": 2}}, id="two processors"),
        pytest.param({"emptyDir": {"sizeLimit": "512Mi"}}, {"emptyDir": {"sizeLimit": "0.5Gi"}}, id="a volume's size"),
    ],
)
def test_it_is_there(live: Any, desired: Any) -> None:
    assert covers(live, desired)


@pytest.mark.parametrize(
    ("live", "desired"),
    [
        pytest.param({"a": 1}, {"a": 2}, id="another value"),
        pytest.param({}, {"a": {"b": 1}}, id="nothing"),
        pytest.param(None, {"a": 1}, id="null"),
        pytest.param({"a": "1"}, {"a": {"b": 1}}, id="another type"),
        pytest.param([{"name": "a"}, {"name": "b"}], [{"name": "a"}], id="one more container"),
        pytest.param([{"name": "a"}], [{"name": "a"}, {"name": "b"}], id="one container less"),
        pytest.param(["a", "b"], ["b", "a"], id="another order of arguments"),
        pytest.param({"env": [{"name": "A", "value": "x"}]}, {"env": [{"name": "A", "value": ""}]}, id="not empty"),
        pytest.param({"hostPID": True}, {"hostPID": False}, id="true, not false"),
        pytest.param({"namespaceSelector": {"matchLabels": {"a": "b"}}}, {"namespaceSelector": {}}, id="some, not all"),
        pytest.param({"limits": {"cpu": "1"}}, {"limits": {"cpu": "2"}}, id="another amount"),
        pytest.param({"limits": {}}, {"limits": {"cpu": "2"}}, id="no amount"),
        pytest.param({"value": "1000m"}, {"value": "1"}, id="a text that looks like an amount"),
        pytest.param({"emptyDir": {}}, {"emptyDir": {"sizeLimit": "1Gi"}}, id="no size"),
    ],
)
def test_it_is_not_there(live: Any, desired: Any) -> None:
    assert not covers(live, desired)
