"""A real cluster as tests see it: objects, waiting, looking, and breaking things on purpose."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from cluster import images as made
from cluster import kind
from cluster.node import Node, Process
from fakes.cluster_reads import ClusterReads
from fakes.kube_connection import client_of_file
from fakes.waiting import HANG_S
from segserve_common.api_errors import ApiError
from segserve_common.kube.client import KubeClient
from segserve_common.kube.kinds import NAMESPACES, PODS
from segserve_operator.api.resources import KINDS

T = TypeVar("T")
Json = dict[str, Any]

CRDS: Final = Path(__file__).parents[2] / "crds"
_OURS: Final = tuple(kind.crd_name for kind in KINDS.values())
ENFORCED: Final = "pod-security.kubernetes.io/enforce"
"""The label of a namespace with the Pod Security Standard that its pods have to meet."""
_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class ImageNames:
    """The images that the cluster can run without a registry."""

    server: str
    operator: str
    envoy: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that tests may use and break: `node` runs its pods, and `second` is there to be lost.

    `host` is this machine's address as pods see it.
    """

    kubeconfig: Path
    images: ImageNames
    host: str
    node: Node
    second: Node
    client: KubeClient = field(init=False, compare=False)
    _reads: ClusterReads = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "client", client_of_file(self.kubeconfig))
        object.__setattr__(self, "_reads", ClusterReads(self.client))

    def close(self) -> None:
        """Close the client's connections."""
        self.client.close()

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl and return what it printed; AssertionError with its words where it fails."""
        cache = Path(tempfile.gettempdir()) / "kubectl"  # else it is in the home of whoever runs the tests
        done = subprocess.run(
            [str(kind.KUBECTL), "--kubeconfig", str(self.kubeconfig), "--cache-dir", str(cache), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def get(self, namespace: str, kind: str, name: str = "", *, labels: str = "") -> Any:
        """Return an object as JSON, None where it is missing; without a name the list of all with the labels."""
        return self._reads.one(namespace, kind, name) if name else self._reads.all(namespace, kind, labels)

    def apply(self, namespace: str, *manifests: Json | Path) -> None:
        """Apply objects, given as JSON or as files of YAML, as a user does."""
        texts = [each.read_text() for each in manifests if isinstance(each, Path)]
        if items := [each for each in manifests if not isinstance(each, Path)]:
            texts.append(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        for text in texts:
            self.kubectl("-n", namespace, "apply", "-f", "-", stdin=text)

    def install_crds(self) -> None:
        """Install our custom resources, or bring them up to date, and wait until they are served."""
        self.kubectl("apply", "-f", str(CRDS))
        self.wait("custom resources are served", lambda: [self.kubectl("get", name, "-A") for name in _OURS])

    def start_pod(self, namespace: str, name: str, image: str, *command: str) -> None:
        """Run a command in a pod that meets the restricted standard and may write only to /tmp; wait until it runs."""
        container = {
            "name": "main",
            "image": image,
            "command": list(command),
            "securityContext": {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }
        spec = {
            "containers": [container],
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }
        self.client.create(PODS, {"metadata": {"name": name}, "spec": spec}, namespace=namespace)
        self.wait("the pod runs", lambda: self.get(namespace, "pod", name)["status"].get("phase") == "Running")

    @contextmanager
    def namespace(self, prefix: str = "test") -> Iterator[str]:
        """Make a namespace for the time of the block. Its pods are killed at the end, the rest goes by itself.

        All pods in it have to meet the restricted Pod Security Standard.
        """
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        labels = {ENFORCED: "restricted"}
        self.client.create(NAMESPACES, {"metadata": {"name": name, "labels": labels}})
        try:
            self.wait("pods have a service account", lambda: self.get(name, "serviceaccount", "default"))
            yield name
        finally:
            self.remove_namespace(name)

    def remove_namespace(self, name: str) -> None:
        """Delete a namespace, also where an operator that would have taken its finalizers away is gone."""
        with suppress(ApiError):
            self.client.delete(NAMESPACES, name)
            for kind in KINDS.values():
                for found in self.get(name, kind.crd_name):
                    path = f"{kind.crd_name}/{found['metadata']['name']}"
                    patch = '{"metadata":{"finalizers":null}}'
                    self.kubectl("-n", name, "patch", path, "--type=merge", "-p", patch, check=False)
            if self.get(name, "pods"):
                killed = ("--all", "--grace-period=0", "--force", "--wait=false")
                self.kubectl("-n", name, "delete", "pods", *killed, check=False)

    def wait(self, what: str, look: Callable[[], T | None], timeout_s: float = HANG_S) -> T:
        """Return the first true value of `look`; AssertionError says what was waited for and what was seen last.

        An AssertionError of `look` means not yet.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                seen, trouble = look(), ""
            except AssertionError as error:
                seen, trouble = None, f"; {error}"
            if seen:
                return seen
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {seen!r}{trouble}")
            time.sleep(_POLL_S)

    def wait_condition(self, namespace: str, kind: str, name: str, condition: str, status: str = "True",
                       timeout_s: float = HANG_S) -> Json:  # fmt: skip
        """Wait until a condition of an object has a status, and return the condition."""

        def look() -> Json | None:
            conditions = (self.get(namespace, kind, name) or {}).get("status", {}).get("conditions", [])
            found = next((each for each in conditions if each["type"] == condition), None)
            if found is None or found["status"] != status:
                raise AssertionError(f"conditions: {conditions}")
            return dict(found)

        return self.wait(f"{condition}={status} of {kind} {name}", look, timeout_s)

    def pods(self, namespace: str, labels: str = "") -> list[Json]:
        """Return the pods with these labels that are not being deleted."""
        found = self.get(namespace, "pods", labels=labels)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def story(self, namespace: str) -> str:
        """Return what a person needs to understand a failure: objects, events, and the end of each container's log."""
        parts = [
            self.kubectl("-n", namespace, "get", "all,configmaps,segm,tpool", "-o", "wide", check=False),
            self.kubectl(
                "-n",
                namespace,
                "get",
                "segm,tpool",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}: {.status}{'\\n'}{end}",
                check=False,
            ),
            self.kubectl("-n", namespace, "get", "events", "--sort-by=.lastTimestamp", check=False),
        ]
        for pod in self.get(namespace, "pods"):
            spec, name = pod["spec"], pod["metadata"]["name"]
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                arguments = ("-n", namespace, "logs", name, "-c", container["name"], "--tail=60")
                parts.append(f"--- {name} {container['name']}\n{self.kubectl(*arguments, check=False)}")
                parts.append(self.kubectl(*arguments, "--previous", check=False))
        return "\n".join(part for part in parts if part.strip())

    def processes(self, namespace: str, pod: str, container: str) -> list[Process]:
        """Return the processes of a container."""
        return self.node.processes(self._container_id(namespace, pod, container))

    def kill(self, namespace: str, pod: str, container: str, *, running: str = "", signal: str = "KILL") -> list[int]:
        """Kill a container's first process, or all whose command contains `running`; return their ids on the node."""
        found = self.processes(namespace, pod, container)
        chosen = [process for process in found if running in process.command] if running else found[:1]
        assert chosen, f"no process with {running!r} in {[process.command for process in found]}"
        for process in chosen:
            self.node.kill(process.pid, signal)
        return [process.pid for process in chosen]

    def restarts(self, namespace: str, pod: str, container: str) -> int:
        """Return how often a container was started again."""
        return int(self._container(namespace, pod, container)["restartCount"])

    def ended_by(self, namespace: str, pod: str, container: str) -> str:
        """Return why a container ended before it was started again, as Kubernetes says it; empty where it never did."""
        return str(self._container(namespace, pod, container)["lastState"].get("terminated", {}).get("reason", ""))

    @contextmanager
    def kubelet_down(self) -> Iterator[None]:
        """Kill the kubelet and start it again at the end of the block."""
        # Without a stop, systemd would start it again after a second.
        self.node.run("systemctl kill --signal=KILL kubelet; systemctl stop kubelet")
        try:
            yield
        finally:
            self.node.run("systemctl start kubelet")

    @contextmanager
    def second_node(self) -> Iterator[Node]:
        """Have a second node with the images for the time of the block, in which it may be lost."""
        self.wait_condition("default", "nodes", self.second.name, "Ready")
        self.second.load(made.IMAGES)
        self.kubectl("uncordon", self.second.name)
        try:
            yield self.second
        finally:
            self.second.recover()
            self.kubectl("cordon", self.second.name)

    @contextmanager
    def api_paused(self) -> Iterator[None]:
        """Let the API server neither answer nor close anything for the time of the block."""
        self.node.run("pkill -STOP -x kube-apiserver")
        try:
            yield
        finally:
            self.node.run("pkill -CONT -x kube-apiserver")

    def _container(self, namespace: str, pod: str, container: str) -> Json:
        status = (self.get(namespace, "pod", pod) or {}).get("status", {})
        known = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
        for each in known:
            if each["name"] == container:
                return dict(each)
        raise AssertionError(f"pod {pod} has no container {container!r}, only {[each['name'] for each in known]}")

    def _container_id(self, namespace: str, pod: str, container: str) -> str:
        status = self._container(namespace, pod, container)
        assert status.get("containerID"), f"{container} of {pod} does not exist yet: {status}"
        return str(status["containerID"]).removeprefix("containerd://")


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Give the tests' cluster, with our images and custom resources; one that is up already is left up."""
    with kind.running():
        made.build()
        kind.FIRST.load([*made.IMAGES, *made.FORMER_IMAGES])
        names = ImageNames(*made.IMAGES)
        cluster = Cluster(kind.KUBECONFIG, names, kind.host(), kind.FIRST, kind.SECOND)
        try:
            cluster.install_crds()
            yield cluster
        finally:
            cluster.close()
