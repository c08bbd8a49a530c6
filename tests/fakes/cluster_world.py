"""A cluster in memory: the real core and adapters over a fake API server, with its kubelet, agents and gateways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fakes.golden_scores import score_report
from fakes.kube import FakeKube
from fakes.kube_faults import Crash
from segserve_builder.agent.protocol import (
    AnswersReport,
    GoldenScoring,
    GoldenTrial,
    ModelReport,
    ModelState,
    ProofReport,
    ScoreReport,
    TrialReport,
)
from segserve_common.api_errors import ApiError, NotFoundError
from segserve_common.http.urls import own_service
from segserve_common.kube.kinds import (
    CHILDREN,
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    GATEWAY_ROUTES,
    MODELS,
    PODS,
    POOLS,
    ROLES,
    Kind,
)
from segserve_common.kube.names import (
    AGENT_CONTAINER,
    COMPONENT_LABEL,
    GATEWAY,
    GROUP_LABEL,
    OWN_REPORTS,
    POOL_LABEL,
    REPORT_KEY,
    REPORTS_KEY,
    SERVER,
    SHARDS,
    TRITON_CONTAINER,
    assignment_name,
    plan_name,
    report_name,
    reports_name,
)
from segserve_common.kube.shards import content_of, pack, unpack, version_of
from segserve_operator.adapters.checks.context import Services
from segserve_operator.adapters.checks.services import DirectServices
from segserve_operator.adapters.kube.api import Api
from segserve_operator.adapters.kube.objects import Defaults
from segserve_operator.adapters.kube.view import KnownObjects, PoolKey, View, fill
from segserve_operator.adapters.kube.write_through import WriteThroughApi
from segserve_operator.adapters.notify.messages import direct_post
from segserve_operator.adapters.notify.notifier import Notifier
from segserve_operator.adapters.traffic.plans import PLANS, load_plan
from segserve_operator.metrics.registry import Metrics
from segserve_operator.reconciler import Dependencies, PoolReconciler

NAMESPACE = "tests"
DEFAULTS = Defaults(server_image="server:1", triton_version="26.04", envoy_image="envoy:1", operator_image="operator:1")
KEY = PoolKey(NAMESPACE, "default")

Json = dict[str, Any]


def model_manifest(name: str, network: str = "1", **spec: Any) -> Json:
    """Return a model whose network file is told by one character."""
    return {
        "apiVersion": MODELS.api_version,
        "kind": MODELS.name,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "artifact": {"uri": f"https://example.org/{network}.onnx", "sha256": network.encode().hex().rjust(64, "0")},
            "family": "semantic-logits",
            "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}],
            "preprocess": [{"decode": {}}],
            "postprocess": [{"argmax": {}}],
            **spec,
        },
    }


@dataclass
class ClusterWorld:
    """Everything around the operator, and the operator itself, which may die and start again."""

    now_s: float = 1_800_000_000.0
    verdicts: dict[str, str] = field(default_factory=dict)
    """What agents say of a model's network (its character) instead of Ready: the reason of a failure."""
    qualities: dict[str, list[float]] = field(default_factory=dict)
    """The quality of a network's answers to golden images, all .9 unless said otherwise; by its character."""
    answers: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    """What each server has counted of a network's answers; by its character."""
    slices: dict[str, dict[str, dict[str, tuple[int, ...]]]] = field(default_factory=dict)
    """The part of it that is of each slice."""
    unpullable: set[str] = field(default_factory=set)
    """Images that no kubelet gets."""
    homeless: set[str] = field(default_factory=set)
    """Parts of the names of pods for which no node has room."""
    bad_pods: dict[str, str] = field(default_factory=dict)
    """What agents say of all that they hold instead of Ready, by pod: the reason of a failure."""
    delay_s: float = 0.0
    defaults: Defaults = DEFAULTS
    fails_with: dict[str, str] = field(default_factory=dict)
    """What servers of an image say of all networks instead of Ready."""
    keys: tuple[PoolKey, ...] = (KEY,)
    room: int | None = None
    """Number of servers that the nodes have room for; None for any number."""
    has_gateway_api: bool = False
    services: Services = field(default_factory=lambda: DirectServices(own_service))
    scheduler_says: str = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."

    def __post_init__(self) -> None:
        self.kube = FakeKube(lambda: self.now_s)
        self.api: Api = self.kube
        self._replaced: dict[str, int] = {}
        self.restart()

    # The operator

    def restart(self) -> None:
        """Begin with a new process, which knows nothing."""
        for watch in list(self.kube.watches):
            watch.close()
        kinds = (MODELS, POOLS, *CHILDREN, *(GATEWAY_ROUTES if self.has_gateway_api else ()))
        self.view = View(kinds, known=KnownObjects())
        self.metrics = Metrics()
        self.metrics.rollouts.clock = lambda: self.now_s
        notifier = Notifier(post=direct_post(own_service))
        outside = Dependencies(notifier, self.metrics, self.services)
        self.passes = PoolReconciler(
            WriteThroughApi(self.api, self.view), self.view, self.defaults, outside, lambda: self.now_s
        )
        self.filled = False

    async def run_pass(self, key: PoolKey = KEY) -> int:
        """Make a pass as the worker does: an error ends it, and the next one tries again. Return its writes."""
        await self.look()
        try:
            return (await self.passes.reconcile(key)).writes
        except ApiError:
            return -1

    async def look(self) -> None:
        """Let the operator see the cluster."""
        if not self.filled:
            await fill(self.view, self.kube, [None])
            self.kube.subscribe(self._feed, self.view.kinds, self.delay_s)
            self.filled = True
        self.kube.deliver()

    def _feed(self, event: str, kind: Kind, found: Json) -> None:
        if event == "DELETED":
            self.view.drop(kind, found)
        else:
            self.view.take(kind, found)

    async def turns(self, count: int = 10, *, seconds_each: float = 1.0) -> None:
        """Let the operator and everything around it take turns; one that dies is started again."""
        for _ in range(count):
            try:
                for key in self.keys:
                    await self.run_pass(key)
            except Crash:
                self.restart()
            await self.work()
            self.check()
            self.now_s += seconds_each

    # Users

    def apply(self, manifest: Json) -> None:
        """Create or change a resource, as kubectl does."""
        kind = MODELS if manifest["kind"] == MODELS.name else POOLS
        name = manifest["metadata"]["name"]
        live = self.kube.peek(kind, NAMESPACE, name)
        if live is None:
            self.kube.put(kind, manifest)
        else:
            self.kube.edit(kind, NAMESPACE, name, {"spec": _with_nulls(manifest["spec"], live["spec"])})

    def apply_pool(self, **spec: Any) -> None:
        """Create or change the pool."""
        metadata = {"name": KEY.pool, "namespace": NAMESPACE}
        self.apply({"apiVersion": POOLS.api_version, "kind": POOLS.name, "metadata": metadata, "spec": spec})

    def delete(self, kind: Kind, name: str) -> None:
        """Ask for the end of a resource."""
        self.kube.remove(kind, NAMESPACE, name)

    # The cluster

    async def work(self) -> None:
        """Do what controllers, kubelet, agents and gateways would do by now."""
        self.kube.collect()
        for pod in self.kube.all(PODS, NAMESPACE):
            if "deletionTimestamp" in pod["metadata"]:
                self.kube.vanish(PODS, NAMESPACE, pod["metadata"]["name"])  # it has drained since the turn before
        pods = self.kube.all(PODS, NAMESPACE)
        for deployment in self.kube.all(DEPLOYMENTS, NAMESPACE):
            self._keep_pods(deployment, pods)
        for pod in self.kube.all(PODS, NAMESPACE):
            labels = pod["metadata"]["labels"]
            if pod["status"]["phase"] != "Running" or is_lost(pod):
                continue
            if labels[COMPONENT_LABEL] == GATEWAY:
                await self._follow(pod)
            else:
                await self._hold(pod, labels[GROUP_LABEL])
        self.kube.deliver()

    def _keep_pods(self, deployment: Json, pods: list[Json]) -> None:
        name, uid = deployment["metadata"]["name"], deployment["metadata"]["uid"]
        template, wanted = deployment["spec"]["template"], deployment["spec"]["replicas"]
        present = {pod["metadata"]["name"] for pod in pods if _owned(pod, uid)}
        for pod in pods:
            if _owned(pod, uid) and "podIP" not in pod["status"]:
                self.kube.vanish(PODS, NAMESPACE, pod["metadata"]["name"])  # the scheduler tries again
                present.remove(pod["metadata"]["name"])
        for index in range(wanted):
            pod_name = self._pod_name(name, index)
            if pod_name not in present:
                while any(pod["metadata"]["name"] == pod_name for pod in pods):
                    # A former Deployment's pod, which ends; its successors have other names.
                    self._replaced[f"{name}-{index}"] = self._replaced.get(f"{name}-{index}", 0) + 1
                    pod_name = self._pod_name(name, index)
                pod = self._placed(self._pod(pod_name, deployment["metadata"], template))
                self.kube.put(PODS, pod, manager="kubelet")
                self.kube.edit_status(PODS, NAMESPACE, pod_name, {"status": pod["status"]})
        for index in range(wanted, wanted + 8):
            if self._pod_name(name, index) in present:
                self.kube.remove(PODS, NAMESPACE, self._pod_name(name, index))

    def _placed(self, pod: Json) -> Json:
        """Return the pod, without a node if there is no room for it."""
        others = (each for each in self.kube.all(PODS, NAMESPACE) if "podIP" in each["status"])
        servers = sum(each["metadata"]["labels"][COMPONENT_LABEL] == SERVER for each in others)
        is_server = pod["metadata"]["labels"][COMPONENT_LABEL] == SERVER
        is_homeless = any(part in pod["metadata"]["name"] for part in self.homeless)
        if not is_server or (not is_homeless and (self.room is None or servers < self.room)):
            return pod
        reason = {"reason": "Unschedulable", "message": self.scheduler_says}
        return {
            **pod,
            "spec": {key: value for key, value in pod["spec"].items() if key != "nodeName"},
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", **reason}]},
        }

    def _pod_name(self, deployment: str, index: int) -> str:
        name = f"{deployment}-{index}"
        return f"{name}-{self._replaced[name]}" if name in self._replaced else name

    def evict(self, deployment: str, index: int) -> None:
        """End a pod; its successor has another name, as a Deployment's pods have."""
        self.kube.vanish(PODS, NAMESPACE, self._pod_name(deployment, index))
        name = f"{deployment}-{index}"
        self._replaced[name] = self._replaced.get(name, 0) + 1

    def _pod(self, name: str, owner: Json, template: Json) -> Json:
        images = {container["name"]: container["image"] for container in template["spec"]["containers"]}
        pulled = not self.unpullable.intersection(images.values())
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": template["metadata"]["labels"],
                "annotations": template["metadata"].get("annotations", {}),
                # With the uid of the Deployment, for this cluster has no objects between it and its pods.
                "ownerReferences": [
                    {
                        "apiVersion": "apps/v1",
                        "kind": "ReplicaSet",
                        "name": f"{owner['name']}-5d8f",
                        "uid": owner["uid"],
                    }
                ],
            },
            "spec": {**template["spec"], "nodeName": f"node-of-{name}"},
            "status": {
                "phase": "Running" if pulled else "Pending",
                "podIP": f"10.0.{self.kube.revision // 250 % 250}.{self.kube.revision % 250}",
                "conditions": [{"type": "Ready", "status": str(pulled)}],
                "containerStatuses": [
                    {"name": each, "image": image, "ready": pulled, "state": {"running": {}} if pulled else waiting}
                    for each, image in images.items()
                ],
            },
        }

    async def _hold(self, pod: Json, group: str) -> None:
        told, pool = [], pod["metadata"]["labels"][POOL_LABEL]
        for shard in range(SHARDS):
            found = self.kube.peek(CONFIG_MAPS, NAMESPACE, assignment_name(pool, group, shard))
            content = content_of(found) if found is not None else None
            if content is None:
                return  # an agent begins once it has read all shards
            told += unpack(content)
        name, image = pod["metadata"]["name"], pod["spec"]["containers"][0]["image"]
        reason = self.bad_pods.get(name) or self.fails_with.get(image)
        models = [self._said(model, reason).model_dump(mode="json", by_alias=True) for model in told]
        await self._report(group, pod, {"serverReady": True, "models": models})

    def _said(self, told: Json, reason: str | None = None) -> ModelReport:
        network = bytes.fromhex(told["artifact"]["sha256"]).lstrip(b"\0").decode(errors="replace")
        reason = reason or self.verdicts.get(network)
        return ModelReport(
            model=told["pipeline"]["model"],
            revision=told["revision"],
            state=ModelState.READY if reason is None else ModelState.FAILED,
            reason=reason or "",
            message=f"{reason} happened" if reason else "",
            artifact_verified=True,
            loaded=reason is None,
            proof="golden" if reason is None else None,
            proved=self._proof(told) if reason is None else None,
            trial=self._trial(told["trial"]) if "trial" in told else None,
            scores=self._scores(told["scoring"], network) if "scoring" in told else None,
            answers=self._answers(network) if "counting" in told else None,
        )

    def _proof(self, told: Json) -> ProofReport:
        sha256 = (told.get("golden") or {}).get("sha256")
        return ProofReport(golden_sha256=sha256)

    def _answers(self, network: str) -> AnswersReport:
        return AnswersReport(histograms=self.answers.get(network, {}), slices=self.slices.get(network, {}))

    def _scores(self, told: Json, network: str) -> ScoreReport:
        golden = GoldenScoring.model_validate(told).golden
        reason = self.verdicts.get(golden.sha256)
        if reason is not None:
            return ScoreReport(golden_sha256=golden.sha256, reason=reason, message=f"{reason} happened")
        return score_report(golden.sha256, self.qualities.get(network, [0.9] * 50))

    def _trial(self, told: Json) -> TrialReport:
        golden = GoldenTrial.model_validate(told).golden
        reason = self.verdicts.get(golden.sha256) if golden is not None else None
        if reason is None:
            return TrialReport(golden=golden, images=2)
        return TrialReport(golden=golden, reason=reason, message=f"{reason} happened")

    async def _follow(self, pod: Json) -> None:
        shards, pool = {}, pod["metadata"]["labels"][POOL_LABEL]
        for shard in range(SHARDS):
            found = self.kube.peek(CONFIG_MAPS, NAMESPACE, plan_name(pool, shard))
            if found is not None:
                shards[str(shard)] = version_of(content_of(found) or "")
        await self._report(GATEWAY, pod, {"shards": shards, "draining": []})

    async def _report(self, group: str, pod: Json, report: Json) -> None:
        packed = pack({"uid": pod["metadata"]["uid"], **report})
        own, pool = report_name(pod["metadata"]["name"]), pod["metadata"]["labels"][POOL_LABEL]
        if group != GATEWAY and self._tells_own(pool, group) and self._may_patch(own):
            name, key = own, REPORT_KEY
        else:
            name, key = reports_name(pool, group), pod["metadata"]["name"]
        try:
            live = await self.kube.get(CONFIG_MAPS, NAMESPACE, name)
        except NotFoundError:
            return
        if (live.get("binaryData") or {}).get(key) != packed:
            self.kube.edit(CONFIG_MAPS, NAMESPACE, name, {"binaryData": {key: packed}}, manager="agent")

    def _tells_own(self, pool: str, group: str) -> bool:
        told = self.kube.peek(CONFIG_MAPS, NAMESPACE, assignment_name(pool, group, 0)) or {}
        return told.get("data", {}).get(REPORTS_KEY) == OWN_REPORTS

    def _may_patch(self, name: str) -> bool:
        rules = (rule for role in self.kube.all(ROLES, NAMESPACE) for rule in role["rules"])
        named = any(name in rule["resourceNames"] and "patch" in rule["verbs"] for rule in rules)
        return named and self.kube.peek(CONFIG_MAPS, NAMESPACE, name) is not None

    # What is to be seen

    def check(self) -> None:
        """Every server that the gateways may send requests to was told to hold what it is asked for."""
        for route in self.routes().values():
            for share in route["shares"]:
                if share["endpoints"]:
                    held = self.held(share["group"])
                    assert held.get(route["model"]) == share["revision"], f"{share} has no holder in {held}"

    def routes(self) -> dict[str, Json]:
        """Return the routes that gateways are told, by model."""
        found: dict[str, Json] = {}
        for shard in range(SHARDS):
            held = self.kube.peek(CONFIG_MAPS, NAMESPACE, plan_name(KEY.pool, shard))
            if held is not None:
                plan = PLANS.dump_python(load_plan(unpack(content_of(held) or "")), mode="json", exclude_none=True)
                found |= {route["model"]: route for route in plan["routes"]}
        return found

    def weights(self, model: str) -> dict[str, int]:
        """Return who gets requests of a model, by group."""
        shares = self.routes()[model]["shares"] if model in self.routes() else []
        return {share["group"]: share["weight"] for share in shares if share["weight"]}

    def held(self, group: str) -> dict[str, str]:
        """Return the revisions that a group was told to hold, by model."""
        found: dict[str, str] = {}
        for shard in range(SHARDS):
            told = self.kube.peek(CONFIG_MAPS, NAMESPACE, assignment_name(KEY.pool, group, shard))
            if told is not None:
                found |= {model["pipeline"]["model"]: model["revision"] for model in unpack(content_of(told) or "")}
        return found

    def groups(self) -> set[str]:
        """Return the names of all groups."""
        labels = [found["metadata"]["labels"] for found in self.kube.all(DEPLOYMENTS, NAMESPACE)]
        return {found[GROUP_LABEL] for found in labels if GROUP_LABEL in found}

    def status(self, model: str) -> Json:
        """Return a model's status."""
        found = self.kube.peek(MODELS, NAMESPACE, model)
        status: Json = found.get("status") or {}
        return status

    def condition(self, model: str, kind: str) -> tuple[str, str]:
        """Return status and reason of a model's condition."""
        return _condition(self.status(model), kind)

    def pool_condition(self, kind: str, pool: str = KEY.pool) -> tuple[str, str]:
        """Return status and reason of a pool's condition."""
        found = self.kube.peek(POOLS, NAMESPACE, pool)
        return _condition(found.get("status") or {}, kind)

    def pool_message(self, kind: str) -> str:
        """Return the message of the pool's condition, empty without one."""
        found = self.kube.peek(POOLS, NAMESPACE, KEY.pool)
        conditions = ((found or {}).get("status") or {}).get("conditions", ())
        return next((said["message"] for said in conditions if said["type"] == kind), "")

    def told(self) -> list[tuple[str, str]]:
        """Return whom each Event is about, and its reason."""
        return [(e["involvedObject"]["name"], e["reason"]) for e in self.kube.all(EVENTS, NAMESPACE)]

    def left(self) -> list[str]:
        """Return all that there is but Events."""
        return [f"{kind.name} {found['metadata']['name']}" for kind, found in self.kube.everything() if kind != EVENTS]


def _with_nulls(wanted: Json, live: Json) -> Json:
    """Return a merge patch that turns `live` into `wanted`."""
    inner = {
        name: _with_nulls(value, live[name])
        for name, value in wanted.items()
        if isinstance(value, dict) and isinstance(live.get(name), dict)
    }
    return {**dict.fromkeys(live.keys() - wanted.keys()), **wanted, **inner}


def _owned(found: Mapping[str, Any], uid: str) -> bool:
    return any(owner["uid"] == uid for owner in found["metadata"].get("ownerReferences", ()))


def _condition(status: Mapping[str, Any], kind: str) -> tuple[str, str]:
    found = next((said for said in status.get("conditions", ()) if said["type"] == kind), {})
    return found.get("status", ""), found.get("reason", "")


__all__ = ["AGENT_CONTAINER", "KEY", "NAMESPACE", "TRITON_CONTAINER", "ClusterWorld", "model_manifest"]


def is_lost(pod: Json) -> bool:
    """Tell whether a pod's node does not report any more."""
    return any(condition.get("reason") == "NodeLost" for condition in pod["status"].get("conditions", ()))
