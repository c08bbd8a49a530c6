"""The live tree of `segserve get -w` on a cluster: pools, servers, models, revisions, pods, and deviations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from segserve_common.kube.kinds import DEPLOYMENTS, MODELS, PODS, POOLS
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY, GROUP_LABEL, MANAGED_LABELS, POOL_LABEL
from segserve_common.kube.requests import Selector
from segserve_operator.core.failure import FailureReason
from segserve_platform.cli.cluster.describe import group_state, pod_state
from segserve_platform.cli.trees import BAD, GOOD, MOVING, QUIET, Node, tree
from segserve_platform.platforms.cluster.platform import POLL_S, ClusterPlatform
from segserve_platform.platforms.cluster.watcher import Watcher
from segserve_platform.platforms.port import MODEL, Json
from segserve_platform.platforms.waiting import condition, is_seen, is_starting

_ROLES: Final = {"stable": GOOD, "candidate": MOVING, "previous": QUIET}
_FALSE_IS_WANTED: Final = frozenset({"Degraded", "Progressing", "Stalled"})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The objects of a namespace at one moment, as returned by the API server."""

    title: str
    models: Sequence[Json] = ()
    pools: Sequence[Json] = ()
    pods: Sequence[Json] = ()
    deployments: Sequence[Json] = ()
    trouble: str = ""
    name: str | None = None
    """The model to show, or None for all."""
    wide: bool = False
    """Whether ready pods are listed too, with their nodes."""


def frames(platform: ClusterPlatform, name: str | None, *, wide: bool) -> Iterator[PoolTree]:
    """Yield a frame after each event of one model or all; the caller sets the pace."""
    selectors = (
        Selector(MODELS),
        Selector(POOLS),
        Selector(PODS, MANAGED_LABELS),
        Selector(DEPLOYMENTS, MANAGED_LABELS),
    )
    if name is not None:
        platform.model(name)
    title = f"namespace {platform.client.namespace}, context {platform.client.context}"
    with Watcher(platform.client, selectors) as watcher:
        version = -1
        while True:
            version = watcher.wait(version, POLL_S)
            models, pools, pods, deployments = (watcher.all(selector.kind) for selector in selectors)
            yield PoolTree(Snapshot(title, models, pools, pods, deployments, watcher.problem, name, wide))


@dataclass(frozen=True, slots=True)
class PoolTree:
    """A snapshot as a tree for terminals."""

    snapshot: Snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.snapshot.title, style=QUIET)
        if self.snapshot.trouble:
            yield Text(f"last known state; {self.snapshot.trouble}", style=BAD)
        nodes = list(_roots(self.snapshot))
        if not nodes:
            yield Text("no models and no pools; add a model with `segserve apply -f model.yaml`")
        yield tree(nodes, ascii_only=options.ascii_only)


def _roots(snapshot: Snapshot) -> Iterator[Node]:
    by_pool: defaultdict[str, list[Json]] = defaultdict(list)
    for model in snapshot.models:
        if snapshot.name in (None, model["metadata"]["name"]):
            by_pool[model["spec"].get("pool", "default")].append(model)
    pools = {pool["metadata"]["name"]: pool for pool in snapshot.pools}
    for name in sorted(by_pool if snapshot.name is not None else by_pool | pools):
        yield _pool(name, pools.get(name), by_pool[name], snapshot)


def _pool(name: str, pool: Json | None, models: list[Json], snapshot: Snapshot) -> Node:
    # Groups of two pools may have the same name.
    own = replace(snapshot, pods=_labelled(snapshot.pods, POOL_LABEL, name),
                   deployments=_labelled(snapshot.deployments, POOL_LABEL, name))  # fmt: skip
    shared = _shared_groups(pool, models)
    rows = [*_conditions(pool or {})]
    rows += [_group(group, own) for group in sorted(shared)]
    if snapshot.name is None and _labelled(own.pods, COMPONENT_LABEL, GATEWAY):
        rows.append(_group(GATEWAY, own, COMPONENT_LABEL))
    rows += [_model(model, shared, own) for model in models]
    if pool is None:
        return Node(Text(name, "bold"), BAD, "no pool", Text(f"no TritonPool {name!r} here: apply one"), rows)
    status = pool.get("status") or {}
    replicas, serving = pool["spec"].get("replicas", 1), status.get("replicas", 0)
    servers = f"{serving}/{replicas} server{'s' if replicas != 1 else ''}"
    detail = Text.assemble(servers, ("  ", ""), (status.get("url", ""), "cyan"))
    return Node(Text(name, "bold"), *_ready(pool), detail, rows)


def _shared_groups(pool: Json | None, models: Sequence[Json]) -> set[str]:
    """Return the groups that several models may use: their pods are shown once, under the pool."""
    main = ((pool or {}).get("status") or {}).get("mainGroup")
    users: defaultdict[str, set[str]] = defaultdict(set)
    for model in models:
        for _, holder in _holders(model):
            if holder.get("group"):
                users[holder["group"]].add(model["metadata"]["name"])
    return {group for group, names in users.items() if len(names) > 1} | ({main} if main else set())


def _model(model: Json, shared: set[str], snapshot: Snapshot) -> Node:
    status = model.get("status") or {}
    weight, holders = status.get("weight"), list(_holders(model))
    name = Text(model["metadata"]["name"], "bold")
    troubles = [*_unseen(model), *_conditions(model)]
    if "deletionTimestamp" in model["metadata"]:
        return Node(name, MOVING, "going", Text("being deleted"), troubles)
    if [role for role, _ in holders] == ["stable"] and holders[0][1].get("group") in shared:
        return Node(name, *_ready(model), _revision(*holders[0], weight), troubles)
    rows = []
    for role, holder in holders:
        group, share = holder.get("group"), _share(role, weight, holders)
        own = [_group(group, snapshot)] if group and group not in shared else []
        rows.append(_holder(role, holder, share, own))
    return Node(name, *_ready(model), Text(""), rows + troubles)


def _holder(role: str, holder: Json, share: int | None, groups: list[Node]) -> Node:
    detail, revision = _revision(role, holder, share, named=False), Text(holder["revision"])
    if role == "candidate" and holder.get("state") == "Failed":
        cause = FailureReason(str(holder.get("reason")), holder.get("message") or "")
        return Node(revision, BAD, "failed", detail, groups, cause)
    return Node(revision, _ROLES[role], role, detail, groups)


def _holders(model: Mapping[str, Any]) -> Iterator[tuple[str, Json]]:
    roles = (model.get("status") or {}).get("roles") or {}
    for role in _ROLES:
        if role in roles:
            yield role, roles[role]


def _share(role: str, weight: int | None, holders: list[tuple[str, Json]]) -> int | None:
    """Return a role's percentage of requests; the status holds that of the candidate."""
    if weight is None or role == "previous":
        return None if weight is None else 0
    return 100 - weight if role == "stable" and any(other == "candidate" for other, _ in holders) else weight


def _revision(role: str, holder: Mapping[str, Any], weight: int | None, *, named: bool = True) -> Text:
    parts = [(f"{holder['revision']}", "")] if named else []
    if weight is not None:
        parts.append((f"{weight} %", "" if weight else QUIET))
    if holder.get("group"):
        parts.append((f"in {holder['group']}", QUIET))
    text = Text()
    for number, (part, style) in enumerate(parts):
        text.append("  " if number else "").append(part, style)
    return text


def _group(group: str, snapshot: Snapshot, label: str = GROUP_LABEL) -> Node:
    pods, deployments = _labelled(snapshot.pods, label, group), _labelled(snapshot.deployments, label, group)
    state = group_state(deployments[0] if deployments else None, pods)
    rows = [_pod(pod, wide=snapshot.wide) for pod in pods]
    # Pods that are ready do not need a line each.
    rows = [row for row in rows if row.colour is not GOOD or row.detail]
    return Node(Text(group), state.colour, state.word, Text(""), rows, state.trouble)


def _pod(pod: Json, *, wide: bool) -> Node:
    state = pod_state(pod)
    place = [str((pod.get("status") or {}).get("podIP", "")), str(pod["spec"].get("nodeName", ""))] if wide else []
    detail = Text("  ".join(filter(None, (*place, state.note))), QUIET)
    return Node(Text(state.name), state.colour, state.word, detail, cause=state.trouble)


def _labelled(items: Sequence[Json], label: str, value: str) -> list[Json]:
    return [item for item in items if item["metadata"].get("labels", {}).get(label) == value]


def _unseen(model: Json) -> Iterator[Node]:
    if not is_seen(model):
        yield Node(Text("spec", QUIET), MOVING, "", Text("the operator has not processed it yet"))


def _ready(manifest: Json) -> tuple[str, str]:
    ready = condition(manifest, "Ready")["status"]
    if manifest.get("kind") == MODEL and is_starting(manifest):
        return MOVING, "starting"
    return {"True": (GOOD, "ready"), "False": (BAD, "not ready")}.get(ready, (MOVING, "waiting"))


def _conditions(manifest: Mapping[str, Any]) -> Iterator[Node]:
    """Yield a row per cause of conditions that are not as wanted."""
    causes: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    # Progress first, then failures; conditions that wait for either are last.
    for each in sorted(conditions, key=lambda item: (item["reason"] == "Waiting", item["type"] != "Progressing")):
        if each["type"] == "Reconciling":
            continue  # for tools: it repeats Progressing
        healthy = "False" if each["type"] in _FALSE_IS_WANTED else "True"
        if each["status"] != healthy:
            causes[each["reason"], each.get("message") or ""].append(each["type"])
    for (reason, message), types in causes.items():
        colour = MOVING if "Progressing" in types else QUIET if reason == "Waiting" else BAD
        shown = ", ".join(types if len(types) < 3 else [*types[:2], f"{len(types) - 2} more"])
        yield Node(Text(shown, QUIET), colour, "", Text(""), cause=FailureReason(reason, message))
