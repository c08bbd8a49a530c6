"""Rollouts beside Flagger and Argo Rollouts: the tools themselves on one cluster, with the same servers and callers.

    PYTHONPATH=tests python -m bench.rollout_peers [--runs N] [--tool NAME ...] [--only NAME ...]

Each tool steers servers with the same embedded Triton, the repositories of `segserve build`, and the same faults.
Flagger writes Contour's HTTPProxy itself. Argo Rollouts writes a TraefikService, whose weights a loop here copies to an
HTTPProxy twice a second: Traefik itself is not to be had as a Go module. Both judge by a Prometheus that scrapes
Contour's Envoy. Each peer runs with the limits of its own page, and once `tuned`: with a median, and limits between
those of both kinds of candidates. segserve runs with all steps, and at the pace of its evidence, its default. Writes
bench/out/rollout_peers.json after each run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
import yaml
from rich.console import Console

from bench.ports import free_port, free_ports
from bench.smoke import output, sized
from fakes.artifact_server import ArtifactServer, artifact_server
from fakes.cluster import Cluster, running_cluster
from fakes.cluster_models import LITTLE, default_pool, model, on_this_machine, smallest
from fakes.contour import MODULE, contour, leads_to_coins
from fakes.installed_operator import TRITON_VERSION, installed
from fakes.neighbours import build, definitions, running
from fakes.pools import pods_with
from fakes.prometheus import configured_prometheus
from fakes.rollout_load import RolloutLoad, p95_ms
from fakes.served_namespace import ServedNamespace
from fakes.waiting import until
from faults.plan import POOL_VARIABLE, Fault, text
from faults.platform import revision_of
from faults.scenarios import AT_FIRST
from faults.story import ENDED
from segserve_builder.memory import STEP_LIMIT_VARIABLE
from segserve_builder.render.tritonserver import SILENT, STEP_ENVIRONMENT

Json = dict[str, Any]

OUT: Final = output("bench/out/rollout_peers.json")
RATE: Final = 10.0
BEFORE_S: Final = 20.0
AFTER_S: Final = 10.0
LIMIT_S: Final = 600.0
DELAY_MS: Final = 11.0
"""The median of a healthy answer."""
FLAGGER: Final = "github.com/fluxcd/flagger"
ARGO: Final = "github.com/argoproj/argo-rollouts"
HOST: Final = "localhost"
MODEL: Final = "coins"
PORT: Final = 8000
INTERVAL: Final = "10s"
MEDIAN_MS: Final = 15.0
"""Between the medians of a healthy candidate and of one that is twice as slow, as Envoy's bins show them."""
COIN: Final = 0

CANDIDATES: Final[Mapping[str, Fault]] = {
    "healthy": Fault(),
    "errors in 10 % of pictures": Fault(errors=0.1),
    "twice as slow": Fault(delay_ms=DELAY_MS),
    "masks of one class gone": Fault(lost_class=COIN),
}
"""What is wrong with each candidate, from its first caller on."""
SLOW_MS: Final = 500.0
"""Answers that take longer are counted as slow; what the SLO allows, and Flagger's tutorial at the 99th percentile."""

FETCH: Final = (
    "import io, sys, tarfile, urllib.request\n"
    "tarfile.open(fileobj=io.BytesIO(urllib.request.urlopen(sys.argv[1]).read())).extractall('/models/repository')"
)
TRITON: Final = (
    "/opt/tritonserver/bin/tritonserver",
    "--model-repository=/models/repository",
    "--backend-directory=/opt/tritonserver/backends",
    "--disable-auto-complete-config",
    "--http-address=0.0.0.0",
    "--allow-metrics=false",
)


GOOD: Final = 150
"""Limit of area of what serves at first; each candidate has another one, which changes no answer."""
AREAS: Final[Mapping[str, int]] = {name: GOOD + 1 + place for place, name in enumerate(CANDIDATES)}
SEGSERVE: Final = str(Path(sys.executable).with_name("segserve"))


class Tool(ABC):
    """A tool that rolls candidates out, and what its user writes beside the model or its servers."""

    url: str
    written: Sequence[Json]

    @abstractmethod
    def apply(self, candidate: str) -> None:
        """Begin to roll a candidate out."""

    @abstractmethod
    def verdict(self) -> str | None:
        """Return `promoted` or `rolled back`, None while it is not decided."""

    def settle(self) -> None:  # noqa: B027
        """Wait until nothing is under way after a verdict; of peers nothing is."""

    @abstractmethod
    def memory_mib(self) -> float:
        """Return the resident memory of its controller."""


class Segserve(Tool):
    """Our operator, with a pool's own gateway."""

    POLICY: Final[Json] = {
        "slo": {"errorPercent": 1, "p95Milliseconds": int(SLOW_MS)},
        "rollout": {
            "pace": "steps",
            "steps": [{"weight": weight, "minDuration": INTERVAL} for weight in range(5, 51, 5)],
            "shadow": {"percent": 100, "minRequests": 100, "maxDuration": "1m"},
            "gates": [
                {"gate": "errorRate"},
                {"gate": "latency"},
                {"gate": "maskAgreement", "minimum": 0.9, "onBreach": "Rollback"},
            ],
            "bakeTime": "30s",
        },
    }

    def __init__(self, served: ServedNamespace, *, at_default_pace: bool) -> None:
        rollout = self.POLICY["rollout"]
        own = {name: rollout[name] for name in rollout if name not in ("pace", "steps")} if at_default_pace else rollout
        self._served, self._policy = served, self.POLICY | {"rollout": own}
        self.written = [self._policy]
        # Its golden set shows no fault: with one that does, no caller ever gets the candidate.
        faults = {name: replace(fault, after=AT_FIRST) for name, fault in CANDIDATES.items()}
        plan = text({revision_of(self._model(AREAS[name])): fault for name, fault in faults.items()})
        pool = default_pool(
            replicas=1,
            gateway={"replicas": 1, "shadow": True},
            server={"drainSeconds": 5, **pods_with({"triton": {"env": [{"name": POOL_VARIABLE, "value": plan}]}})},
        )
        served.apply(pool, self._model(GOOD))
        served.wait_ready(MODEL)
        self.url = served.url()

    def _model(self, area: int) -> Json:
        return model(name=MODEL, postprocess=smallest(area), keepPrevious="1m", **self._policy)

    def apply(self, candidate: str) -> None:
        wanted = self._model(AREAS[candidate])
        self._candidate = revision_of(wanted)
        self._served.apply(wanted)

    def verdict(self) -> str | None:
        said = self._served.status(MODEL).get("rollout") or {}
        if said.get("revision") != self._candidate:
            return None
        if said["phase"] in ("Baking", "Succeeded"):
            return "promoted"
        return "rolled back" if said["phase"] in ENDED else None

    def settle(self) -> None:
        self._served.cluster.wait(
            "the rollout has ended", lambda: self._served.status(MODEL)["rollout"]["phase"] in ENDED
        )

    def memory_mib(self) -> float:
        cluster, namespace = self._served.cluster, self._served.operator.namespace
        (pod,) = self._served.operator.pods()
        processes = cluster.processes(namespace, pod["metadata"]["name"], "operator")
        lines = [cluster.node.run(f"grep VmRSS /proc/{each.pid}/status") for each in processes]
        return sum(int(line.split()[1]) for line in lines) / 1024


@dataclass(frozen=True, slots=True)
class Front:
    """Contour's Envoy before a namespace, the Prometheus that scrapes it, and the archives of model repositories."""

    cluster: Cluster
    namespace: str
    url: str
    prometheus: str
    archives: Mapping[int, str]
    plan: str

    def pod(self, area: int) -> Json:
        """Return the template of a pod that serves a revision."""
        variables = {**STEP_ENVIRONMENT, **SILENT, STEP_LIMIT_VARIABLE: str(2**30), POOL_VARIABLE: self.plan}
        confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        image = {"image": self.cluster.images.server, "securityContext": confined, "resources": LITTLE}
        volumes = {"models": {}, "tmp": {}, "shm": {"medium": "Memory", "sizeLimit": "256Mi"}}
        mounts = [
            {"name": "models", "mountPath": "/models"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ]
        fetch = ["python3", "-c", FETCH, self.archives[area]]
        triton = {
            **image,
            "name": "triton",
            "command": list(TRITON),
            "env": [{"name": name, "value": value} for name, value in variables.items()],
            "ports": [{"name": "http", "containerPort": PORT}],
            "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": PORT}, "periodSeconds": 1},
            "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},  # Flagger knows no other way
            "volumeMounts": mounts,
        }
        spec = {
            "initContainers": [{**image, "name": "fetch", "command": fetch, "volumeMounts": mounts[:1]}],
            "containers": [triton],
            "securityContext": {"runAsNonRoot": True, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": name, "emptyDir": kind} for name, kind in volumes.items()],
        }
        return {"metadata": {"labels": {"app": MODEL}}, "spec": spec}

    def workload(self, area: int) -> Json:
        """Return what the specs of a Deployment and of a Rollout have in common."""
        return {"selector": {"matchLabels": {"app": MODEL}}, "template": self.pod(area)}

    def apply(self, *manifests: Json) -> None:
        """Apply objects to the namespace."""
        self.cluster.apply(self.namespace, *manifests)

    def status(self, kind: str) -> Json:
        """Return the status of an object called as the model."""
        status: Json = (self.cluster.get(self.namespace, kind, MODEL) or {}).get("status") or {}
        return status

    def proxy(self, **spec: Any) -> Json:
        """Return the HTTPProxy that callers come by."""
        own = {"virtualhost": {"fqdn": HOST}, **spec}
        return {"apiVersion": "projectcontour.io/v1", "kind": "HTTPProxy", "metadata": {"name": "root"}, "spec": own}


class Peer(Tool):
    """A tool whose controller is a process of this machine and that callers reach through Contour."""

    def __init__(self, front: Front, process: psutil.Process) -> None:
        self._front, self._process, self.url = front, process, front.url

    def memory_mib(self) -> float:
        return float(self._process.memory_info().rss / 2**20)

    def _median(self) -> str:
        """Return the query of the median of a minute of the candidate's answers in milliseconds."""
        name = f'envoy_cluster_name=~"{self._front.namespace}_{MODEL}-canary_[0-9a-zA-Z-]+"'
        return f"histogram_quantile(0.5, sum(rate(envoy_cluster_upstream_rq_time_bucket{{{name}}}[1m])) by (le))"


class Flagger(Peer):
    """Flagger with Contour: the analysis of its tutorial, each ten seconds, or a tuned one."""

    def __init__(self, front: Front, process: psutil.Process, *, tuned: bool) -> None:
        super().__init__(front, process)
        template = {
            "apiVersion": "flagger.app/v1beta1",
            "kind": "MetricTemplate",
            "metadata": {"name": "median"},
            "spec": {"provider": {"type": "prometheus", "address": front.prometheus}, "query": self._median()},
        }
        median = {"name": "median", "templateRef": {"name": "median"}, "thresholdRange": {"max": MEDIAN_MS}}
        duration = {"name": "request-duration", "thresholdRange": {"max": SLOW_MS}, "interval": "30s"}
        success = {"name": "request-success-rate", "thresholdRange": {"min": 99}, "interval": "1m"}
        analysis = {
            "interval": INTERVAL,
            "threshold": 3 if tuned else 5,
            "maxWeight": 50,
            "stepWeight": 5,
            "metrics": [success, {**median, "interval": "1m"} if tuned else duration],
        }
        spec = {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": MODEL},
            "service": {"port": PORT, "targetPort": PORT, "timeout": "30s"},
            "analysis": analysis,
        }
        canary = {"apiVersion": "flagger.app/v1beta1", "kind": "Canary", "metadata": {"name": MODEL}, "spec": spec}
        proxy = front.proxy(includes=[{"name": MODEL, "conditions": [{"prefix": "/"}]}])
        self.written = [canary, proxy, *([template] if tuned else ())]
        front.apply(self._deployment(GOOD), *self.written)
        front.cluster.wait("Flagger has its primary", lambda: self._phase() == "Initialized", LIMIT_S)

    def _deployment(self, area: int) -> Json:
        named = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": MODEL}}
        return {**named, "spec": self._front.workload(area)}  # without replicas, which Flagger sets

    def _phase(self) -> str:
        return str(self._front.status("canaries.flagger.app").get("phase"))

    def apply(self, candidate: str) -> None:
        self._former, self._has_begun = self._phase(), False
        self._front.apply(self._deployment(AREAS[candidate]))

    def verdict(self) -> str | None:
        phase = self._phase()
        self._has_begun |= phase not in (self._former, "Initialized")
        return {"Succeeded": "promoted", "Failed": "rolled back"}.get(phase) if self._has_begun else None


class ArgoRollouts(Peer):
    """Argo Rollouts with the steps of its page on analysis, each of ten seconds, and two measurements in each.

    Tuned, it has the limits of Flagger's page, a median, and room for one measurement that fails.
    """

    def __init__(self, front: Front, process: psutil.Process, *, tuned: bool) -> None:
        super().__init__(front, process)
        name = f'envoy_cluster_name=~"{front.namespace}_{MODEL}-canary_[0-9a-zA-Z-]+"'
        total = f"sum(rate(envoy_cluster_upstream_rq{{{name}}}[1m]))"
        errors = f'sum(rate(envoy_cluster_upstream_rq{{{name},envoy_response_code!~"5.*"}}[1m]))'

        def metric(name: str, query: str, condition: str) -> Json:
            return {
                "name": name,
                "interval": "5s",
                "successCondition": f"len(result) == 0 || isNaN(result[0]) || result[0] {condition}",
                "failureLimit": 1 if tuned else 3,
                "provider": {"prometheus": {"address": front.prometheus, "query": query}},
            }

        metrics = [metric("success-rate", f"{errors} / {total}", ">= 0.99" if tuned else ">= 0.95")]
        if tuned:
            metrics.append(metric("median", self._median(), f"<= {MEDIAN_MS}"))
        steps = [
            step for weight in (20, 40, 60, 80) for step in ({"setWeight": weight}, {"pause": {"duration": INTERVAL}})
        ]
        self._canary = {
            "canaryService": f"{MODEL}-canary",
            "stableService": f"{MODEL}-stable",
            "trafficRouting": {"traefik": {"weightedTraefikServiceName": MODEL}},
            "analysis": {"templates": [{"templateName": "masks"}], "startingStep": 2},
            "steps": steps,
        }
        services = [f"{MODEL}-{role}" for role in ("stable", "canary")]
        traefik = {
            "apiVersion": "traefik.io/v1alpha1",
            "kind": "TraefikService",
            "metadata": {"name": MODEL},
            "spec": {"weighted": {"services": [{"name": each, "port": PORT} for each in services]}},
        }
        template = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "AnalysisTemplate",
            "metadata": {"name": "masks"},
            "spec": {"metrics": metrics},
        }
        spec = {"selector": {"app": MODEL}, "ports": [{"port": PORT, "targetPort": PORT}]}
        made = [
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": each}, "spec": spec} for each in services
        ]  # fmt: skip
        self.written = [template, traefik, *made, {"strategy": {"canary": self._canary}}]
        front.apply(template, traefik, *made, self._rollout(GOOD), self._routed(0))
        front.cluster.wait("Argo Rollouts is at rest", lambda: self._status().get("phase") == "Healthy", LIMIT_S)

    def _rollout(self, area: int) -> Json:
        spec = {**self._front.workload(area), "replicas": 1, "strategy": {"canary": self._canary}}
        return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": MODEL}, "spec": spec}

    def _status(self) -> Json:
        return self._front.status("rollouts.argoproj.io")

    def _routed(self, weight: int) -> Json:
        weights = {"stable": 100 - weight, "canary": weight}
        services = [{"name": f"{MODEL}-{role}", "port": PORT, "weight": each} for role, each in weights.items()]
        return self._front.proxy(routes=[{"services": services, "timeoutPolicy": {"response": "30s"}}])

    @contextmanager
    def following(self) -> Iterator[None]:
        """Copy the weights of the TraefikService for the time of the block."""
        ended, copied = threading.Event(), 0

        def follow() -> None:
            nonlocal copied
            while not ended.wait(0.5):
                found = self._front.cluster.get(self._front.namespace, "traefikservices.traefik.io", MODEL)
                weight = int(found["spec"]["weighted"]["services"][1].get("weight", 0))
                if weight != copied:
                    self._front.apply(self._routed(weight))
                    copied = weight

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def apply(self, candidate: str) -> None:
        self._former = self._status()["currentPodHash"]
        self._front.apply(self._rollout(AREAS[candidate]))

    def verdict(self) -> str | None:
        status = self._status()
        if status["currentPodHash"] == self._former:
            return None
        if status.get("abort"):
            return "rolled back" if status["canary"]["weights"]["canary"]["weight"] == 0 else None
        return "promoted" if status["phase"] == "Healthy" and status["stableRS"] == status["currentPodHash"] else None


def archives(artifacts: ArtifactServer) -> tuple[Mapping[int, str], str]:
    """Return the address of each revision's repository, as `segserve build` writes it, and the plan of their faults."""
    addresses, plan = {}, {}
    faults = {GOOD: Fault(), **{AREAS[name]: fault for name, fault in CANDIDATES.items()}}
    for area, fault in faults.items():
        with tempfile.TemporaryDirectory() as name:
            file, folder = Path(name, "model.yaml"), Path(name, "models")
            file.write_text(yaml.safe_dump(on_this_machine(model(name=MODEL, postprocess=smallest(area)))))
            command = [SEGSERVE, "build", "-f", file, "-o", folder, "--triton", TRITON_VERSION, "--cpus", "2"]
            built = subprocess.run(command, check=True, capture_output=True, text=True)
            plan[built.stdout.split()[0]] = fault
            with tarfile.open(artifacts.folder / f"{area}.tar", "w") as archive:
                for each in sorted(folder.iterdir()):
                    archive.add(each, each.name)
        addresses[area] = f"{artifacts.url}/{area}.tar"
    return addresses, text(plan)


@contextmanager
def front(cluster: Cluster, folder: Path) -> Iterator[Front]:
    """Contour and Prometheus for a namespace, for the time of the block."""
    served, stats = free_ports(2)
    url = f"http://{HOST}:{served}"
    options = (
        f"--envoy-service-http-address=127.0.0.1 --envoy-service-http-port={served} "
        f"--stats-address=127.0.0.1 --stats-port={stats}"
    ).split()
    target = {"targets": [f"127.0.0.1:{stats}"]}
    job = {"job_name": "envoy", "metrics_path": "/stats/prometheus", "static_configs": [target]}
    config = {"global": {"scrape_interval": "5s"}, "scrape_configs": [job]}
    with ExitStack() as stack:
        namespace = stack.enter_context(cluster.namespace("peers"))
        (folder / "artifacts").mkdir()
        made = archives(stack.enter_context(artifact_server("0.0.0.0", folder / "artifacts", advertised=cluster.host)))
        program = build("contour", folder / "contour-program", f"{MODULE}/cmd/contour")
        (folder / "prometheus").mkdir()
        prometheus = stack.enter_context(configured_prometheus(folder / "prometheus", config, {}))
        # Without a route it listens on no port yet.
        stack.enter_context(contour(program, cluster, folder / "contour", lambda: True, {}, *options))
        yield Front(cluster, namespace, url, prometheus, *made)


@contextmanager
def segserve(cluster: Cluster, _: Path, *, at_default_pace: bool = False) -> Iterator[Tool]:
    """Our operator on a namespace of its own, for the time of the block."""
    with ExitStack() as stack:
        namespace = stack.enter_context(cluster.namespace("ours"))
        operator = stack.enter_context(installed(cluster, [namespace]))
        yield Segserve(ServedNamespace(cluster, operator, namespace), at_default_pace=at_default_pace)


@contextmanager
def flagger(cluster: Cluster, folder: Path, *, tuned: bool = False) -> Iterator[Tool]:
    """Flagger on a namespace of its own, for the time of the block."""
    with ExitStack() as stack:
        found = stack.enter_context(front(cluster, folder))
        program = build("flagger", folder / "flagger", f"{FLAGGER}/cmd/flagger")
        options = (
            f"-kubeconfig={cluster.kubeconfig} -mesh-provider=contour -metrics-server={found.prometheus} "
            f"-namespace={found.namespace} -port={free_port()} -log-level=info"
        ).split()
        process = stack.enter_context(running([program, *options], folder / "flagger.log"))
        tool = Flagger(found, psutil.Process(process.pid), tuned=tuned)
        until(lambda: leads_to_coins(tool.url, HOST), "the route leads to the first revision")
        yield tool


@contextmanager
def argo_rollouts(cluster: Cluster, folder: Path, *, tuned: bool = False) -> Iterator[Tool]:
    """Argo Rollouts on a namespace of its own, for the time of the block."""
    with ExitStack() as stack:
        found = stack.enter_context(front(cluster, folder))
        program = build("argorollouts", folder / "argo-rollouts", f"{ARGO}/cmd/rollouts-controller")
        metrics, health = free_ports(2)
        options = (
            f"--kubeconfig={cluster.kubeconfig} --namespace={found.namespace} --namespaced --leader-elect=false "
            f"--metricsPort={metrics} --healthzPort={health}"
        ).split()
        variables = {"POD_NAMESPACE": found.namespace}
        process = stack.enter_context(running([program, *options], folder / "argo-rollouts.log", variables))
        tool = ArgoRollouts(found, psutil.Process(process.pid), tuned=tuned)
        stack.enter_context(tool.following())
        until(lambda: leads_to_coins(tool.url, HOST), "the route leads to the first revision")
        yield tool


@contextmanager
def kinds(cluster: Cluster) -> Iterator[None]:
    """Have the kinds of Contour and both peers for the time of the block, and the one that takes Argo's weights."""
    argo = ("rollout", "analysis-run", "analysis-template", "cluster-analysis-template", "experiment")
    names = {"plural": "traefikservices", "singular": "traefikservice", "kind": "TraefikService"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": schema}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "traefikservices.traefik.io"},
        "spec": {"group": "traefik.io", "scope": "Namespaced", "names": names, "versions": [version]},
    }
    files = [f"manifests/crds/{each}-crd.yaml" for each in argo]
    with (
        definitions(cluster, "contour", MODULE, "examples/contour/01-crds.yaml", kinds="httpproxies"),
        definitions(cluster, "flagger", FLAGGER, "artifacts/flagger/crd.yaml", kinds="canaries"),
        definitions(cluster, "argorollouts", ARGO, *files, kinds="rollouts"),
    ):
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(crd))
        try:
            cluster.wait("the kind is served", lambda: [cluster.kubectl("get", names["plural"], "-A")])
            yield
        finally:
            cluster.kubectl("delete", "crd", "traefikservices.traefik.io", "--wait=false")


TOOLS: Final = {
    "segserve": segserve,
    "Flagger 1.36.1": flagger,
    "Argo Rollouts 1.10.2": argo_rollouts,
    "segserve at its default pace": partial(segserve, at_default_pace=True),
    "Flagger 1.36.1, tuned": partial(flagger, tuned=True),
    "Argo Rollouts 1.10.2, tuned": partial(argo_rollouts, tuned=True),
}


def rolled_out(tool: Tool, candidate: str) -> Json:
    """Roll a candidate out under load, and return what its callers got."""
    with RolloutLoad(tool.url, MODEL, RATE, protocols=("http",)) as load:
        time.sleep(BEFORE_S)
        began_s, before = time.time(), list(load.calls)
        tool.apply(candidate)
        while (verdict := tool.verdict()) is None and time.time() < began_s + LIMIT_S:
            time.sleep(0.5)
        ended_s = time.time()
        time.sleep(AFTER_S)
    calls = [call for call in load.calls if call.began_s >= began_s]
    failed = [call for call in calls if call.error]
    return {
        "verdict": verdict or "undecided",
        "seconds": round(ended_s - began_s, 1),
        "asked": len(calls),
        "failed": len(failed),
        "errors": sorted({call.error[:80] for call in failed})[:5],
        "wrong": sum(call.bad and not call.error for call in calls),
        "slow": sum(not call.error and call.latency_ms > SLOW_MS for call in calls),
        "p50_before_ms": round(median(call.latency_ms for call in before), 1),
        "p95_before_ms": round(float(p95_ms(before) or 0.0), 1),
        "p50_ms": round(median(call.latency_ms for call in calls), 1),
        "p95_ms": round(float(p95_ms(calls) or 0.0), 1),
        "memory_mib": round(tool.memory_mib()),
    }


def measured(name: str, cluster: Cluster, candidates: Sequence[str]) -> Iterator[tuple[str, Json, Json]]:
    """Yield each candidate with what its callers got from a tool, and how much a user writes for that tool."""
    left = list(candidates)
    while left:
        with tempfile.TemporaryDirectory() as folder, TOOLS[name](cluster, Path(folder)) as tool:
            lines = len(yaml.safe_dump_all(tool.written).splitlines())
            is_well = True
            while left and is_well:
                candidate = left.pop(0)
                result = rolled_out(tool, candidate)
                yield candidate, result, {"objects": len(tool.written), "lines": lines}
                # What a promoted fault leaves is no healthy revision to compare the next one with.
                is_well = candidate == "healthy" or result["verdict"] == "rolled back"
                tool.settle()


def main() -> None:
    """Run each tool with each candidate, and write what came of it."""
    parser = argparse.ArgumentParser(prog="python -m bench.rollout_peers", description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--tool", choices=TOOLS, action="append", help="only this tool; repeatable")
    parser.add_argument("--only", choices=CANDIDATES, action="append", help="only this candidate; repeatable")
    given = parser.parse_args()
    console, found = Console(), json.loads(OUT.read_text()) if OUT.exists() else {}
    candidates = given.only or sized(list(CANDIDATES), ["errors in 10 % of pictures"])
    with running_cluster() as cluster, kinds(cluster):
        for name in (given.tool or list(TOOLS)) * given.runs:
            for candidate, result, written in measured(name, cluster, candidates):
                console.print(name, candidate, result)
                found.setdefault(name, {})["written"] = written
                found[name].setdefault(candidate, []).append(result)
                OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
