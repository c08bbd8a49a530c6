"""What is deleted or changed by hand comes back while requests go on; what users delete goes without a trace."""

from __future__ import annotations

import base64
import copy
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from fakes.callers import EIGHT, Load
from fakes.cluster_models import model, pool
from fakes.served_namespace import MODEL, POOL, ServedNamespace
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY, MODEL_LABEL, POOL_LABEL, SERVER, object_name
from segserve_common.kube.shards import content_of, version_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

Json = dict[str, Any]

POOLS = ("default", "second")
CALM_PASSES = 2 * len(POOLS)
"""Each has had one, from its beginning to its end."""
NAMES = ("coins", "coins-instances", "coins-twostage")
GARBAGE = base64.b64encode(b"garbage").decode()
SOMEBODY: Json = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "somebody"}, "ownerReferences": None}}
EDITS: dict[str, Json] = {
    "deployments": {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}},
    "services": {"spec": {"selector": {POOL_LABEL: "another"}}},
    "configmaps": {},
    "poddisruptionbudgets": {"spec": {"maxUnavailable": "100%"}},
    "networkpolicies": {"spec": {"ingress": []}},
    "serviceaccounts": {"automountServiceAccountToken": True},
    "roles": {"rules": []},
    "rolebindings": {"subjects": []},
    "controllerrevisions": {"metadata": {"labels": {MODEL_LABEL: "another", "segserve.dev/revision": "another"}}},
}


def of_pool(served: ServedNamespace, kind: str) -> dict[str, Json]:
    """Return the pool's objects of a kind by name; of Deployments only that of the servers."""
    component = f",{COMPONENT_LABEL}={SERVER}" if kind == "deployments" else ""
    found: list[Json] = served.cluster.get(served.name, kind, labels=f"{POOL_LABEL}=default{component}")
    return {each["metadata"]["name"]: each for each in found if "deletionTimestamp" not in each["metadata"]}


def essence(found: Json, pods: Collection[str]) -> Json:
    """Return what an object says, without what differs from one making of it to the next; `pods` are those there."""
    kept = copy.deepcopy(found)
    meta = kept.pop("metadata")
    kept.pop("status", None)
    if kept["kind"] == "ConfigMap":
        return {"metadata": meta["labels"], "whole": is_whole(kept, pods)}
    if kept["kind"] == "Service":
        kept["spec"] = {name: value for name, value in kept["spec"].items() if not name.startswith("clusterIP")}
    kept.pop("secrets", None)
    kept.pop("revision", None)
    return kept | {"metadata": {"labels": meta["labels"], "owners": meta.get("ownerReferences")}}


def is_whole(found: Json, pods: Collection[str]) -> bool:
    """Tell whether a ConfigMap is one that its readers take up."""
    told = found.get("binaryData") or {}
    if "version" in (found.get("data") or {}):
        return content_of(found) is not None and version_of(told["content"]) == found["data"]["version"]
    return all(told[pod] != GARBAGE for pod in told.keys() & set(pods))


def garbled(kind: str, found: Json) -> Json:
    """Return a change to an object that makes it useless."""
    return {"binaryData": dict.fromkeys(found["binaryData"], GARBAGE)} if kind == "configmaps" else EDITS[kind]


@contextmanager
def calls(served: ServedNamespace, kind: str) -> Iterator[None]:
    """Call a model all the while; not one request fails. A Service's own address does not outlive it."""
    url = served.url()
    if kind == "services":
        url = served.internal_urls()[0].replace(":8081", ":8080")
    with Load(url, "coins", 0.5, EIGHT) as load:
        yield
        load.wait_for(served.stable("coins"))
    assert load.failures == []


def check_repaired(served: ServedNamespace, kind: str, change: Callable[[Json], None]) -> None:
    """Make a change to every object of a kind, and wait until all are as they were and the pool is whole."""
    before = of_pool(served, kind)
    assert before
    with calls(served, kind):
        for each in before.values():
            change(each)
        wanted = essences(served, before)

        def repaired() -> bool:
            now = essences(served, of_pool(served, kind))
            changed = [name for name in wanted if now.get(name) != wanted[name]]
            if kind == "controllerrevisions":
                changed = sorted(set(labels(before)) ^ set(labels(of_pool(served, kind))))
            if changed:
                raise AssertionError(f"not as before: {changed}: {[now.get(name) for name in changed]}")
            return True

        served.cluster.wait(f"{kind} are repaired", repaired)
        if kind == "services":
            served.cluster.wait("the Service sends callers to its gateways", lambda: slices_follow(served))
        served.cluster.wait("all pods are ready", lambda: is_whole_again(served))


def slices_follow(served: ServedNamespace) -> bool:
    """Tell whether the gateways' Service has their addresses in its slices."""
    name = object_name("default")
    slices = served.cluster.get(served.name, "endpointslices", labels=f"kubernetes.io/service-name={name}")
    sent = {to for each in slices for endpoint in each.get("endpoints") or () for to in endpoint["addresses"]}
    pods = served.cluster.pods(served.name, f"{POOL_LABEL}=default,{COMPONENT_LABEL}={GATEWAY}")
    wanted = {pod["status"].get("podIP", "") for pod in pods}
    if not wanted <= sent:
        raise AssertionError(f"callers are sent to {sorted(sent)}, not to {sorted(wanted)}")
    return True


def essences(served: ServedNamespace, found: dict[str, Json]) -> dict[str, Json]:
    pods = {pod["metadata"]["name"] for pod in served.cluster.pods(served.name)}
    return {name: essence(each, pods) for name, each in found.items()}


def labels(found: dict[str, Json]) -> list[str]:
    return [each["metadata"]["labels"]["segserve.dev/revision"] for each in found.values()]


def is_whole_again(served: ServedNamespace) -> bool:
    """Tell whether two servers and two gateways are ready, and the pool and its models say that they are."""
    for component in (SERVER, GATEWAY):
        pods = served.cluster.get(served.name, "pods", labels=f"{POOL_LABEL}=default,{COMPONENT_LABEL}={component}")
        ready = [
            all(each["ready"] for each in pod["status"].get("containerStatuses", [{"ready": False}]))
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"]
        ]
        if ready != [True, True]:
            raise AssertionError(f"{component}: {ready}")
    said = (served.get(POOL, "default") or {})["status"]["conditions"]
    served.wait_ready(*NAMES)
    return all(each["status"] == ("True" if each["type"] == "Ready" else "False") for each in said)


@pytest.mark.parametrize("kind", EDITS)
def test_what_is_deleted_by_hand_is_made_again_and_no_request_fails(served: ServedNamespace, kind: str) -> None:
    check_repaired(served, kind, lambda found: served.delete(kind, found["metadata"]["name"], wait=False))


def test_a_deleted_gateway_is_back_soon(served: ServedNamespace) -> None:
    """Whom kube-proxy sends nowhere meanwhile is this cluster's to say: newer ones send callers to pods that end."""
    name = object_name("default", GATEWAY)
    former = served.get("deployment", name)
    assert former is not None
    served.delete("deployment", name, wait=False)

    def is_made_anew() -> bool:
        made = served.get("deployment", name)
        if made is None or made["metadata"]["uid"] == former["metadata"]["uid"] or not is_whole_again(served):
            return False
        labels = f"{POOL_LABEL}=default,{COMPONENT_LABEL}={GATEWAY}"
        pods = served.cluster.get(served.name, "pods", labels=labels)
        # Once its former pods are gone, only the others can answer, to which kube-proxy sends somewhat later.
        return len(pods) == 2 and httpx.get(f"{served.url()}/v2/health/ready", trust_env=False).is_success

    def is_reached() -> bool:
        try:
            return is_made_anew()
        except httpx.TransportError as error:
            raise AssertionError(f"the gateway cannot be reached: {error}") from error

    served.cluster.wait("two other gateways and all models answer", is_reached)
    with calls(served, "deployments"):
        pass


@pytest.mark.parametrize("kind", EDITS)
def test_what_is_edited_by_hand_is_put_right_and_no_request_fails(served: ServedNamespace, kind: str) -> None:
    check_repaired(served, kind, lambda found: served.patch(kind, found["metadata"]["name"], garbled(kind, found)))


def test_what_is_made_somebody_elses_becomes_ours_again_and_no_request_fails(served: ServedNamespace) -> None:
    for kind in EDITS:
        if kind != "controllerrevisions":
            check_repaired(
                served, kind, lambda found, kind=kind: served.patch(kind, found["metadata"]["name"], SOMEBODY)
            )


def test_at_rest_nothing_is_written(served: ServedNamespace) -> None:
    served.wait_ready("coins", "zoo-unet")
    served.cluster.wait("no pod is ending any more", lambda: not ending(served))
    served.cluster.wait("servers have reported on what was repaired before", lambda: is_calm(served))
    look_at_all(served)
    writes, versions = served.operator.writes(), served.versions()

    an_audit_goes_by(served)

    assert served.operator.writes() == writes
    assert served.versions() == versions


def ending(served: ServedNamespace) -> list[str]:
    """Return the pods that still drain: their budgets' status changes when they are gone."""
    pods = served.cluster.get(served.name, "pods")
    return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" in pod["metadata"]]


def is_calm(served: ServedNamespace) -> bool:
    """Tell whether nothing but what wakes the operator is written while it looks at every pool."""
    before = calm_state(served)
    look_at_all(served)
    return calm_state(served) == before


def calm_state(served: ServedNamespace) -> Any:
    versions = served.versions()
    return served.operator.writes(), {key: version for key, version in versions.items() if key[0] != "TritonPool"}


def look_at_all(served: ServedNamespace) -> None:
    """Wake the operator, which has no pass to make for minutes, until it has looked at every pool."""
    former = served.operator.passes()
    for _ in range(CALM_PASSES // 2):  # a pass may be under way when the first is asked for
        asked = served.operator.passes()
        for name in POOLS:
            touched = {"metadata": {"annotations": {"touched": uuid.uuid4().hex}}}
            served.patch(POOL, name, touched)
        served.cluster.wait("a pass of each pool", lambda asked=asked: served.operator.passes() >= asked + len(POOLS))
    assert served.operator.passes() >= former + CALM_PASSES


def an_audit_goes_by(served: ServedNamespace) -> None:
    """Return once the operator has compared all that it knows with the cluster, which it does by itself."""
    ages_s = [served.operator.audit_age_s()]

    def is_younger() -> bool:
        ages_s.append(served.operator.audit_age_s())
        return ages_s[-1] < ages_s[-2]

    served.cluster.wait("an audit of the operator", is_younger)


@pytest.fixture
def third(served: ServedNamespace) -> Iterator[ServedNamespace]:
    """Another pool with two models."""
    found = served.get(POOL, "second")
    assert found is not None
    served.apply(pool("third", gateway={"replicas": 1}, artifacts=found["spec"]["artifacts"]))
    served.apply(*(model("zoo-unet", name=name, pool="third", expose=[]) for name in ("one", "two")))
    served.wait_ready("one", "two")
    yield served
    served.operator.scale(1)


def test_a_deleted_model_and_pool_leave_nothing_also_where_the_operator_was_down(third: ServedNamespace) -> None:
    third.delete(MODEL, "one")
    third.cluster.wait("nothing is left of the model", lambda: left(third, f"{MODEL_LABEL}=one") == [])
    with Load(third.url(), "coins", 0.5, EIGHT) as load:
        third.operator.scale(0)
        third.delete(MODEL, "two", wait=False)
        third.delete(POOL, "third", wait=False)
        third.operator.scale(1)
        third.cluster.wait("the model is gone", lambda: third.get(MODEL, "two") is None)
        third.cluster.wait("the pool is gone", lambda: third.get(POOL, "third") is None)
        third.cluster.wait("nothing is left of the pool", lambda: left(third, f"{POOL_LABEL}=third") == [])
    assert load.failures == []


def left(served: ServedNamespace, label: str) -> list[str]:
    return [f"{each['kind']} {each['metadata']['name']}" for each in served.children(label)]
