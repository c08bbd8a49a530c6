"""One pool on a real cluster as its API objects show it: pods, what servers hold, what gateways are told."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fakes.cluster import Cluster
from fakes.cluster_models import LITTLE_GATEWAY, LITTLE_SERVER
from fakes.waiting import HANG_S
from segserve_common.kube.names import (
    COMPONENT_LABEL,
    GATEWAY,
    GROUP_LABEL,
    MANAGED_LABELS,
    POOL_LABEL,
    SERVER,
    SHARDS,
    assignment_name,
    object_name,
    plan_name,
)
from segserve_common.kube.shards import content_of, unpack
from segserve_operator.adapters.traffic.plans import PLANS, load_plan

T = TypeVar("T")
Json = dict[str, Any]

EXAMPLE = Path(__file__).parents[2] / "examples/coins"
CONDITIONS = ("Ready", "Degraded", "Progressing")
CHILD_KINDS = (
    "deployments",
    "services",
    "configmaps",
    "serviceaccounts",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
    "networkpolicies.networking.k8s.io",
    "poddisruptionbudgets.policy",
    "controllerrevisions.apps",
)


def pool_manifest(**spec: Any) -> Json:
    """Return a pool `default` whose servers end quickly."""
    server = {"drainSeconds": 2, "exitTimeoutSeconds": 5, "sharedMemory": "256Mi", **spec.pop("server", {})}
    gateway = {"drainSeconds": 3, **spec.pop("gateway", {})}
    return {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "TritonPool",
        "metadata": {"name": "default"},
        "spec": {"server": server, "gateway": gateway, **spec},
    }


def small_pool() -> Json:
    """Return a pool of one server and one gateway that end at once, many of which have room on a node."""
    return pool_manifest(
        gateway={"replicas": 1, "drainSeconds": 0, **LITTLE_GATEWAY}, server={"drainSeconds": 0, **LITTLE_SERVER}
    )


def coins_manifest(name: str = "coins", min_area: int = 150, **spec: Any) -> Json:
    """Return the example's semantic network under a name; another smallest region is another revision."""
    documents = yaml.safe_load_all((EXAMPLE / "model.yaml").read_text())
    manifest: Json = next(found for found in documents if found["metadata"]["name"] == "coins")
    manifest["metadata"]["name"] = name
    manifest["spec"].pop("expose", None)
    manifest["spec"]["postprocess"] = [{"argmax": {}}, {"removeSmallRegions": {"minArea": min_area}}]
    manifest["spec"] |= spec
    return manifest


@dataclass(frozen=True)
class ClusterPool:
    """The pool `default` of a namespace. `told` adds to the story of a failure."""

    cluster: Cluster
    namespace: str
    told: Callable[[], str] = lambda: ""
    pool: str = "default"

    def wait(self, what: str, look: Callable[[], T | None], timeout_s: float = HANG_S) -> T:
        """Return the first true value of `look`; what fails tells the whole story, and again what failed below it."""
        try:
            return self.cluster.wait(what, look, timeout_s)
        except AssertionError as error:
            if self.namespace in str(error):  # a wait within a wait: the story has been told
                raise
            story = f"==== namespace {self.namespace}\n{self.cluster.story(self.namespace)}\n{self.told()}"
            raise AssertionError(f"{error}\n{story}\n{error}") from None

    def apply(self, *manifests: Json) -> None:
        """Apply objects."""
        self.cluster.apply(self.namespace, *manifests)

    def touch(self) -> None:
        """Change what nobody reads of the pool: its operator looks at everything."""
        touched = f"touched={uuid.uuid4().hex}"
        self.cluster.kubectl("-n", self.namespace, "annotate", "--overwrite", "tritonpool", self.pool, touched)

    def delete(self, kind: str, name: str) -> None:
        """Ask for the end of an object, and do not wait for it."""
        self.cluster.kubectl("-n", self.namespace, "delete", kind, name, "--wait=false")

    @property
    def url(self) -> str:
        """Where this machine finds the gateway."""
        service = self.cluster.get(self.namespace, "service", object_name(self.pool))
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def pods(self, component: str = "") -> list[Json]:
        """Return the pods of the servers or of the gateway, or of both, that are not about to end."""
        chosen = f",{COMPONENT_LABEL}={component}" if component else ""
        return self.cluster.pods(self.namespace, f"{POOL_LABEL}={self.pool}{chosen}")

    def servers(self) -> list[Json]:
        """Return the servers' pods."""
        return self.pods(SERVER)

    def gateways(self) -> list[Json]:
        """Return the gateway's pods."""
        return self.pods(GATEWAY)

    def is_whole(self, servers: int, gateways: int, model: str = "coins") -> bool:
        """Tell whether so many pods are ready, and all servers get a model's requests; AssertionError says what not."""
        found = self.servers(), self.gateways()
        ready = [[pod for pod in pods if is_ready(pod)] for pods in found]
        assert [len(pods) for pods in found] == [servers, gateways], [name_of(pod) for pods in found for pod in pods]
        assert [len(pods) for pods in ready] == [servers, gateways], [states(pod) for pods in found for pod in pods]
        wanted = sorted(pod["status"]["podIP"] for pod in ready[0])
        told = sorted(self.endpoints(model))
        assert told == wanted, f"{model} is sent to {told}, and the servers are {wanted}"
        return True

    def routes(self) -> dict[str, Json]:
        """Return the routes that gateways are told, by model."""
        maps = self._maps(plan_name(self.pool, shard) for shard in range(SHARDS))
        plans = (load_plan(unpack(content_of(found) or "")) for found in maps)
        return {
            route["model"]: route
            for plan in plans
            for route in PLANS.dump_python(plan, mode="json", exclude_none=True)["routes"]
        }

    def endpoints(self, model: str) -> list[str]:
        """Return the addresses that get a model's requests."""
        shares = self.routes().get(model, {}).get("shares", ())
        return [endpoint["host"] for share in shares if share["weight"] for endpoint in share["endpoints"]]

    def held(self, group: str) -> dict[str, str]:
        """Return the revisions that a group was told to hold, by model."""
        maps = self._maps(assignment_name(self.pool, group, shard) for shard in range(SHARDS))
        told = [model for found in maps for model in unpack(content_of(found) or "")]
        return {model["pipeline"]["model"]: model["revision"] for model in told}

    def groups(self) -> list[str]:
        """Return the names of all groups."""
        found = self.cluster.get(self.namespace, "deployments", labels=f"{POOL_LABEL}={self.pool}")
        labels = [each["metadata"]["labels"] for each in found]
        return sorted(label[GROUP_LABEL] for label in labels if GROUP_LABEL in label)

    def model(self, name: str = "coins") -> Json | None:
        """Return a model."""
        found: Json | None = self.cluster.get(self.namespace, "segmentationmodel", name)
        return found

    def final_state(self) -> Json:
        """Return all that must not depend on what went wrong on the way: no addresses, times, uids, versions."""
        labels = ",".join(f"{name}={value}" for name, value in MANAGED_LABELS.items())
        found = [
            each
            for kind in (",".join(CHILD_KINDS), "segmentationmodels,tritonpools")
            for each in self.cluster.get(self.namespace, kind, labels="" if kind.startswith("seg") else labels)
        ]
        ours = [each for each in found if each["kind"] in ("SegmentationModel", "TritonPool")]
        return {
            "objects": sorted(f"{each['kind']} {each['metadata']['name']}" for each in found),
            "models": {f"{each['kind']} {each['metadata']['name']}": said(each) for each in ours},
            "weights": {
                model: {share["group"]: [share["revision"], share["weight"]] for share in route["shares"]}
                for model, route in self.routes().items()
            },
            "reached": {model: len(self.endpoints(model)) for model in self.routes()},
            "held": {group: self.held(group) for group in self.groups()},
        }

    def _maps(self, names: Any) -> list[Json]:
        wanted = set(names)
        found = self.cluster.get(self.namespace, "configmaps", labels=f"{POOL_LABEL}={self.pool}")
        return [each for each in found if each["metadata"]["name"] in wanted and content_of(each)]


def said(found: Mapping[str, Any]) -> Json:
    """Return what a status says, without times and generations."""
    status = found.get("status") or {}
    conditions = {each["type"]: [each["status"], each["reason"]] for each in status.get("conditions", ())}
    roles = {role: [held["revision"], held["group"]] for role, held in (status.get("roles") or {}).items() if held}
    is_current = status.get("observedGeneration") == found["metadata"]["generation"]
    finalizers = found["metadata"].get("finalizers", [])
    return {"conditions": conditions, "roles": roles, "current": is_current, "finalizers": finalizers}


def name_of(found: Mapping[str, Any]) -> str:
    """Return an object's name."""
    return str(found["metadata"]["name"])


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Tell whether a pod is ready."""
    conditions = pod["status"].get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def states(pod: Mapping[str, Any]) -> str:
    """Return the state of each container of a pod, for a person."""
    found = pod["status"].get("containerStatuses", ())
    return f"{name_of(pod)}: " + json.dumps({each["name"]: [each["ready"], *each["state"]] for each in found})
