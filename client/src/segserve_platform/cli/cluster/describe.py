"""States of pods, and `segserve describe` on a cluster: the resource, its events, and the pods of its groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from segserve_common.kube.kinds import PODS
from segserve_common.kube.names import GROUP_LABEL, MANAGED_LABELS
from segserve_operator.adapters.kube.pods import pod_failure
from segserve_operator.core.failure import FailureReason
from segserve_platform.cli.models_view import event_lines, model_text
from segserve_platform.platforms.cluster.context_client import ContextClient
from segserve_platform.platforms.cluster.platform import ClusterPlatform, events_of, short_name
from segserve_platform.platforms.errors import ForbiddenError
from segserve_platform.platforms.port import Json


@dataclass(frozen=True, slots=True)
class PodState:
    """A name, a colour, a word, a note, and the failure if there is one."""

    name: str
    colour: str
    word: str
    note: str = ""
    trouble: FailureReason | None = None


def pod_state(pod: Json) -> PodState:
    """Return the state of a pod."""
    name, status = short_name(pod), pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    ready = sum(bool(each.get("ready")) for each in containers)
    total = len(pod.get("spec", {}).get("containers") or containers)
    if "deletionTimestamp" in pod["metadata"]:
        return PodState(name, "yellow", "going")
    failure = pod_failure(None, [pod])
    if failure is not None:
        return PodState(name, "red", f"{ready}/{total}", trouble=failure)
    restarts = sum(int(each.get("restartCount", 0)) for each in containers)
    again = f"restarted {restarts} time{'s' if restarts > 1 else ''}" if restarts else ""
    if is_ready(pod):
        return PodState(name, "green", "ready", again)
    return PodState(name, "yellow", f"{ready}/{total} {str(status.get('phase', 'Pending')).lower()}", again)


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod is ready to receive requests."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


_ANNOTATION: Final = "kubectl.kubernetes.io/last-applied-configuration"


def describe_on_cluster(platform: ClusterPlatform, model: Json, record: Json | None) -> str:
    """Return a model's details as text, with the `record` of its latest rollout; forbidden parts show the error."""
    metadata = dict(model["metadata"])
    annotations = {key: value for key, value in metadata.pop("annotations", {}).items() if key != _ANNOTATION}
    shown = {**model, "metadata": metadata | ({"annotations": annotations} if annotations else {})}
    about, client = f"model {metadata['name']}", platform.client
    events = event_lines(about, lambda: events_of(client, about, model))
    return model_text(shown, record, (*events, "pods:", *_pods(client, model)))


def _pods(client: ContextClient, model: Json) -> Iterator[str]:
    roles = (model.get("status") or {}).get("roles") or {}
    groups = {holder["group"]: role for role, holder in reversed(roles.items()) if holder.get("group")}
    try:
        pods, _ = client.list(PODS, labels=MANAGED_LABELS)
    except ForbiddenError as error:
        yield f"  {error}"
        return
    mine = [pod for pod in pods if pod["metadata"]["labels"].get(GROUP_LABEL) in groups]
    if not mine:
        yield "  none"
    for pod in mine:
        state, status = pod_state(pod), pod.get("status") or {}
        place = f"{status.get('podIP', '-'):<15} {pod['spec'].get('nodeName', '-')}"
        role = groups[pod["metadata"]["labels"][GROUP_LABEL]]
        cause = "" if state.trouble is None else f"{state.trouble.reason}: {' '.join(state.trouble.message.split())}"
        yield (
            "  "
            + "  ".join(
                (f"{role:<10}", pod["metadata"]["name"], f"{state.word:<11}", place, state.note + cause)
            ).rstrip()
        )
