"""`segserve describe` on a cluster: the resource, its events, and the pods of its groups."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from segserve.cli.cluster.pods import pod_state
from segserve.cli.models_view import age, model_text
from segserve.platforms.cluster.context_client import ContextClient
from segserve.platforms.cluster.platform import ClusterPlatform
from segserve.platforms.errors import ForbiddenError
from segserve.platforms.port import Json
from segserve_common.kube.kinds import EVENTS, PODS
from segserve_common.kube.names import GROUP_LABEL, MANAGED_LABELS

_ANNOTATION = "kubectl.kubernetes.io/last-applied-configuration"


def describe_on_cluster(platform: ClusterPlatform, model: Json, record: Json | None) -> str:
    """Return a model's details as text, with the `record` of its latest rollout; forbidden parts show the error."""
    metadata = dict(model["metadata"])
    annotations = {key: value for key, value in metadata.pop("annotations", {}).items() if key != _ANNOTATION}
    shown = {**model, "metadata": metadata | ({"annotations": annotations} if annotations else {})}
    return "\n".join(
        (
            model_text(shown, record),
            "events:",
            *_events(platform.client, model),
            "pods:",
            *_pods(platform.client, model),
        )
    )


def _events(client: ContextClient, model: Json) -> Iterator[str]:
    metadata = model["metadata"]
    try:
        events, _ = client.list(
            EVENTS, fields=f"involvedObject.name={metadata['name']},involvedObject.uid={metadata['uid']}"
        )
    except ForbiddenError as error:
        yield f"  {error}"
        return
    if not events:
        yield "  none (clusters delete events after an hour)"
    for event in sorted(events, key=_time):
        count = int(event.get("count") or 1)
        often = f" ({count} times)" if count > 1 else ""
        message = " ".join(str(event.get("message") or "").split())
        yield f"  {age(_time(event)):>4}  {event.get('type', ''):<8} {event.get('reason', ''):<18} {message}{often}"


def _time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or datetime.now(UTC).isoformat())


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
