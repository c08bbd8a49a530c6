"""A namespace whose pools an operator serves, as its users and its administrator see it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fakes.callers import EIGHT, Load
from fakes.cluster import Cluster, Json
from fakes.installed_operator import InstalledOperator
from fakes.waiting import HANG_S
from segserve import platform
from segserve_common.kube.names import (
    COMPONENT_LABEL,
    GATEWAY,
    GROUP_LABEL,
    INTERNAL_PORT,
    MANAGED_LABELS,
    POOL_LABEL,
    SERVER,
    object_name,
)
from segserve_common.kube.shards import unpack
from segserve_platform.platforms.cluster.platform import ClusterPlatform

MODEL: Final = "segmentationmodel"
POOL: Final = "tritonpool"
CHILDREN: Final = (
    "deployments,services,configmaps,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets,"
    "controllerrevisions,pods,replicasets"
)
_OURS: Final = ",".join(f"{name}={value}" for name, value in MANAGED_LABELS.items())


@dataclass(frozen=True, slots=True)
class ServedNamespace:
    """What `operator` makes of the models and pools of the namespace `name`."""

    cluster: Cluster
    operator: InstalledOperator
    name: str

    def platform(self) -> ClusterPlatform:
        """Return the namespace as commands see it."""
        return ClusterPlatform.connect(platform.Cluster(namespace=self.name, kubeconfig=Path(self.cluster.kubeconfig)))

    def story(self) -> str:
        """Return what a person needs to understand a failure."""
        return f"{self.cluster.story(self.name)}\n{self.cluster.story(self.operator.namespace)}"

    def apply(self, *manifests: Json) -> None:
        """Apply models and pools as a user does."""
        self.cluster.apply(self.name, *manifests)

    def patch(self, kind: str, name: str, patch: Json) -> None:
        """Merge a patch into an object, as somebody does by hand."""
        self.cluster.kubectl("-n", self.name, "patch", kind, name, "--type=merge", "-p", json.dumps(patch))

    def delete(self, kind: str, *names: str, wait: bool = True) -> None:
        """Delete objects, and wait for their end unless told not to."""
        options = (f"--wait={str(wait).lower()}", f"--timeout={HANG_S:g}s")
        self.cluster.kubectl("-n", self.name, "delete", kind, *names, *options)

    def get(self, kind: str, name: str) -> Json | None:
        found: Json | None = self.cluster.get(self.name, kind, name)
        return found

    def url(self, pool: str = "default") -> str:
        """Return where the pool's models answer, for a caller outside of the cluster's DNS."""
        service = self.get("service", object_name(pool))
        assert service is not None, f"pool {pool} has no Service"
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def internal_urls(self, pool: str = "default") -> list[str]:
        """Return where each gateway takes requests for one group."""
        pods = self.cluster.pods(self.name, f"{POOL_LABEL}={pool},{COMPONENT_LABEL}={GATEWAY}")
        return [f"http://{pod['status']['podIP']}:{INTERNAL_PORT}" for pod in pods]

    def gateways(self) -> dict[str, list[int]]:
        """Return the gateways' pods by uid, and how often their containers were started again."""
        pods = self.cluster.pods(self.name, f"{COMPONENT_LABEL}={GATEWAY}")
        return {
            pod["metadata"]["uid"]: [each["restartCount"] for each in pod["status"]["containerStatuses"]]
            for pod in pods
        }

    def status(self, model: str) -> Json:
        status: Json = (self.get(MODEL, model) or {}).get("status", {})
        return status

    def role(self, model: str, role: str) -> tuple[str, str] | None:
        """Return the revision and the group of a role."""
        found = self.status(model).get("roles", {}).get(role)
        return (found["revision"], found.get("group", "")) if found else None

    def stable(self, model: str) -> str:
        found = self.role(model, "stable")
        assert found is not None, f"{model} has no stable revision"
        return found[0]

    def main(self, pool: str = "default") -> str:
        """Return the group that the pool's models settle in."""
        found = self.get(POOL, pool)
        return str(found["status"]["mainGroup"])

    def condition(self, model: str, kind: str) -> Json | None:
        said = self.status(model).get("conditions", [])
        return next((condition for condition in said if condition["type"] == kind), None)

    def becomes(self, model: str, kind: str, status: str, reason: str = "", timeout_s: float = HANG_S) -> Json:
        """Wait until a condition of the present spec has a status, and a reason where one is named; return it."""

        def look() -> Json | None:
            found = self.get(MODEL, model)
            conditions = found.get("status", {}).get("conditions", [])
            said: Json | None = next((condition for condition in conditions if condition["type"] == kind), None)
            if said is None or said.get("observedGeneration", 0) < found["metadata"]["generation"]:
                raise AssertionError(f"not seen yet: {said}")
            if said["status"] != status or reason not in ("", said["reason"]):
                raise AssertionError(str(conditions))
            return said

        return self.cluster.wait(f"{kind}={status} {reason} of {model}", look, timeout_s)

    def wait_ready(self, *models: str, timeout_s: float = HANG_S) -> None:
        """Wait until the models serve what their specs ask for, in the main group, and nothing is under way."""
        for model in models:
            self.becomes(model, "Ready", "True", timeout_s=timeout_s)
            self.cluster.wait(f"{model} rests", lambda m=model: self._rests(m), timeout_s)

    def _rests(self, model: str) -> bool:
        roles = self.status(model).get("roles", {})
        if set(roles) != {"stable"}:
            raise AssertionError(f"roles {roles}")
        said = self.condition(model, "Progressing")
        return said is not None and said["status"] == "False"

    def groups(self, pool: str = "default") -> set[str]:
        """Return the groups that servers are there for."""
        found = self.cluster.get(self.name, "deployments", labels=f"{POOL_LABEL}={pool},{COMPONENT_LABEL}={SERVER}")
        return {each["metadata"]["labels"][GROUP_LABEL] for each in found}

    def children(self, labels: str = _OURS) -> list[Json]:
        """Return all that the operator made here, and what came of it, or only what has other labels."""
        found: list[Json] = self.cluster.get(self.name, CHILDREN, labels=labels)
        return found

    def versions(self) -> dict[tuple[str, str], str]:
        """Return the resourceVersion of all that the operator may write, models and pools too."""
        found = [
            *(each for each in self.children() if each["kind"] not in ("Pod", "ReplicaSet", "Deployment")),
            *self.cluster.get(self.name, "segm,tpool"),
        ]
        return {(each["kind"], each["metadata"]["name"]): each["metadata"]["resourceVersion"] for each in found}

    def packed(self, config_map: str) -> Any:
        """Return what a ConfigMap of a plan or an assignment tells."""
        found = self.get("configmap", config_map)
        return unpack(found["binaryData"]["content"])

    @contextmanager
    def load(self, model: str = "coins", pool: str = "default", pause_s: float = 0.3) -> Iterator[Load]:
        """Call a model from eight clients; none of their requests may fail."""
        with Load(self.url(pool), model, pause_s, EIGHT) as load:
            yield load
        assert load.failures == []
        assert load.answers

    def writes_of(self, former: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Return what the operator wrote since it had written `former`, Events left out."""
        new = self.operator.writes() - former
        return {call: count for call, count in new.items() if call[1] != "Event"}
