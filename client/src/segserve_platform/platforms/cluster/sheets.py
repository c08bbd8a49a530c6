"""Sheets from a cluster: the memory of gateways' comparators, through a port of loopback in their pods.

Nothing but a forwarded port leads there, so `create pods/portforward` is the right to see callers' images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from segserve_builder.comparator import fetching
from segserve_builder.comparator.sheet import Sheet
from segserve_common.http.urls import RequestError
from segserve_common.kube.kinds import PODS
from segserve_common.kube.names import (
    COMPARATOR_CONTAINER,
    COMPONENT_LABEL,
    GATEWAY,
    MANAGED_LABELS,
    POOL_LABEL,
    SHEETS_PORT,
)
from segserve_platform.platforms.cluster.gateway import forwarded_port
from segserve_platform.platforms.errors import ControlError

if TYPE_CHECKING:
    from segserve_platform.platforms.cluster.context_client import ContextClient
    from segserve_platform.platforms.port import Json


def fetch_sheet(client: ContextClient, pool: str, model: str, kubectl_options: list[str]) -> bytes | None:
    """Return the worst pairs of all gateways of a pool as one sheet, as JSON; None if no gateway has any.

    Raises `ControlError` if the gateways have no comparator, or a pod cannot be reached.
    """
    labels = {**MANAGED_LABELS, POOL_LABEL: pool, COMPONENT_LABEL: GATEWAY}
    pods = [pod for pod in client.list(PODS, labels=labels)[0] if _compares(pod)]
    if not pods:
        raise ControlError(
            f"no gateway of pool {pool!r} runs with a comparator, so nothing is compared: set spec.gateway.shadow"
        )
    sheets = []
    for pod in pods:
        target = f"pod/{pod['metadata']['name']}"
        with forwarded_port(client, target, SHEETS_PORT, kubectl_options) as url:
            try:
                content = fetching.fetch_sheet(httpx.HTTPTransport(), model, url)
                sheets += [Sheet.model_validate_json(content)] if content is not None else []
            except (RequestError, ValueError) as error:
                raise ControlError(f"the sheet of {model} in {target} cannot be read: {error}") from error
    return Sheet.merged(sheets).model_dump_json().encode() if sheets else None


def _compares(pod: Json) -> bool:
    containers = {each["name"] for each in pod["spec"]["containers"]}
    is_running = (pod.get("status") or {}).get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
    return is_running and COMPARATOR_CONTAINER in containers
