"""Fields of segserve's objects that somebody else sets: left alone at rest, while segserve's own are put right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fakes.cases import cases
from fakes.cluster_world import NAMESPACE, ClusterWorld, model_manifest
from fakes.kube_faults import Faulty
from fakes.pools import pods_with
from segserve_common.kube.kinds import DEPLOYMENTS, NETWORK_POLICIES, ROLES, SERVICES, Kind
from segserve_common.kube.names import GROUP_LABEL

Json = dict[str, Any]


def _once(items: list[Json], key: str, item: Json) -> None:
    if not any(each.get(key) == item[key] for each in items):
        items.append(item)


def add_variable(pod: Json) -> None:
    for container in pod["spec"]["containers"]:
        _once(container.setdefault("env", []), "name", {"name": "HTTPS_PROXY", "value": "http://proxy"})


def add_volume(pod: Json) -> None:
    _once(pod["spec"]["volumes"], "name", {"name": "ca", "emptyDir": {}})
    for container in pod["spec"]["containers"]:
        _once(container["volumeMounts"], "mountPath", {"name": "ca", "mountPath": "/etc/ssl/company"})


def add_sidecar(pod: Json) -> None:
    _once(pod["spec"]["containers"], "name", {"name": "mesh", "image": "mesh:1"})
    _once(pod["spec"].setdefault("initContainers", []), "name", {"name": "mesh-init", "image": "mesh:1"})


def add_toleration(pod: Json) -> None:
    _once(pod["spec"].setdefault("tolerations", []), "key", {"key": "gpu", "operator": "Exists"})


def add_labels(pod: Json) -> None:
    pod["metadata"].setdefault("labels", {})["team"] = "vision"
    pod["metadata"].setdefault("annotations", {})["injected"] = "yes"


def change_image(pod: Json) -> None:
    for container in pod["spec"]["containers"]:
        container["image"] = "mirror/" + container["image"].removeprefix("mirror/")


def _to_deployments(change: Callable[[Json], None]) -> Callable[[Kind, Json], None]:
    def admission(kind: Kind, item: Json) -> None:
        if kind == DEPLOYMENTS:
            change(item["spec"]["template"])

    return admission


async def served(admission: Callable[[Kind, Json], None] | None = None, **spec: Any) -> ClusterWorld:
    world = ClusterWorld()
    if admission is not None:
        world.kube.admission = admission
    world.apply_pool(**spec)
    world.apply(model_manifest("coins"))
    await world.turns()
    return world


def main_deployment(world: ClusterWorld) -> Json:
    (found,) = (each for each in world.kube.all(DEPLOYMENTS) if GROUP_LABEL in each["metadata"]["labels"])
    return found


@pytest.mark.parametrize(
    "change",
    [add_variable, add_volume, add_sidecar, add_toleration, add_labels, change_image],
    ids=lambda change: change.__name__,
)
async def test_with_admission_that_changes_deployments_nothing_is_written_at_rest(change: Callable[..., None]) -> None:
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists"}
    world = await served(
        _to_deployments(change), server=pods_with(tolerations=[toleration], imagePullSecrets=[{"name": "own"}])
    )
    before = world.kube.revision
    world.restart()
    await world.turns(3)
    counted = Faulty(world.kube)
    world.api = counted
    await world.turns(10)

    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.kube.revision == before
    assert await world.run_pass() == 0
    assert counted.writes == 0
    found = main_deployment(world)
    changed = main_deployment(world)
    change(changed["spec"]["template"])
    assert found == changed


async def test_an_own_field_is_put_right_and_what_admission_added_stays() -> None:
    world = await served(_to_deployments(add_variable))
    found = main_deployment(world)
    name, containers = found["metadata"]["name"], found["spec"]["template"]["spec"]["containers"]
    own = containers[0]["env"][-2]
    containers[0]["env"] = [{"name": "OTHER", "value": "1"}, *containers[0]["env"]]
    containers[0]["env"][-2] = {"name": own["name"], "value": "changed"}
    containers[1]["image"] = "other:1"
    world.kube.edit(DEPLOYMENTS, NAMESPACE, name, {"spec": {"template": {"spec": {"containers": containers}}}})
    await world.turns(3)

    repaired = main_deployment(world)["spec"]["template"]["spec"]["containers"]
    assert own in repaired[0]["env"]
    assert {"name": "OTHER", "value": "1"} in repaired[0]["env"]
    assert {"name": "HTTPS_PROXY", "value": "http://proxy"} in repaired[0]["env"]
    assert repaired[1]["image"] == "server:1"


@cases(
    "edit",
    {
        "a second handler": lambda c: c["readinessProbe"].update(exec={"command": ["true"]}),
        "another value": lambda c: c["env"][0].update(value="x", valueFrom=None),
        "no variables": lambda c: c["env"].clear(),
        "no mount": lambda c: c["volumeMounts"].pop(),
    },
)
async def test_what_makes_an_own_field_invalid_is_removed_and_items_of_others_stay(
    edit: Callable[[Json], None],
) -> None:
    world = await served()
    before = main_deployment(world)["spec"]["template"]["spec"]["containers"][0]
    found = main_deployment(world)
    containers = found["spec"]["template"]["spec"]["containers"]
    edit(containers[0])
    if "exec" in containers[0]["readinessProbe"]:
        del containers[0]["readinessProbe"]["httpGet"]
    containers[0]["env"] = [{k: v for k, v in each.items() if v is not None} for each in containers[0]["env"]]
    containers.append({"name": "mesh", "image": "mesh:1"})
    template = {"spec": {"template": {"spec": {"containers": containers}}}}
    world.kube.edit(DEPLOYMENTS, NAMESPACE, found["metadata"]["name"], template)
    await world.turns(3)

    triton, _, mesh = main_deployment(world)["spec"]["template"]["spec"]["containers"]
    assert triton["readinessProbe"] == before["readinessProbe"]
    assert {each["name"]: each for each in triton["env"]} == {each["name"]: each for each in before["env"]}
    assert {each["mountPath"] for each in triton["volumeMounts"]} == {
        each["mountPath"] for each in before["volumeMounts"]
    }
    assert mesh["name"] == "mesh"
    assert await world.run_pass() == 0


async def test_a_right_that_somebody_adds_is_taken_back() -> None:
    world = await served()
    for kind, field in ((ROLES, "rules"), (NETWORK_POLICIES, "spec")):
        for found in world.kube.all(kind):
            more = (
                {"rules": [*found["rules"], {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}
                if field == "rules"
                else {"spec": {"ingress": [{}]}}
            )
            world.kube.edit(kind, NAMESPACE, found["metadata"]["name"], more)
            await world.turns(2)
            assert world.kube.peek(kind, NAMESPACE, found["metadata"]["name"])[field] == found[field]


async def test_a_port_that_somebody_adds_to_a_service_stays() -> None:
    world = await served()
    found = world.kube.all(SERVICES)[0]
    ports = [*found["spec"]["ports"], {"name": "other", "port": 99, "targetPort": 99, "protocol": "TCP"}]
    world.kube.edit(SERVICES, NAMESPACE, found["metadata"]["name"], {"spec": {"ports": ports}})
    before = world.kube.revision
    await world.turns(3)

    assert world.kube.revision == before
    assert world.kube.peek(SERVICES, NAMESPACE, found["metadata"]["name"])["spec"]["ports"] == ports


class ControllerAtWork(Faulty):
    """An API server whose deployment controller writes a status right after each of the first reads of a Deployment."""

    statuses = 3

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        found = await super().get(kind, namespace, name)
        if kind == DEPLOYMENTS and self.statuses:
            await self._api.patch(kind, namespace, name, {"status": {"replicas": self.statuses}}, status=True)
            self.statuses -= 1
        return found


async def test_what_a_controller_writes_of_an_object_meanwhile_does_not_end_its_repair() -> None:
    world = await served()
    found = main_deployment(world)
    containers = found["spec"]["template"]["spec"]["containers"]
    before = containers[0].pop("readinessProbe")
    containers[0]["readinessProbe"] = {"exec": {"command": ["true"]}}
    template = {"spec": {"template": {"spec": {"containers": containers}}}}
    world.kube.edit(DEPLOYMENTS, NAMESPACE, found["metadata"]["name"], template)
    api = ControllerAtWork(world.kube)
    world.api = api
    world.restart()

    await world.turns(3)

    assert api.statuses == 0
    assert main_deployment(world)["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] == before
