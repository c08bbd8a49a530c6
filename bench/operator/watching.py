"""Watches that go on, whatever ends them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2
from lightkube import AsyncClient
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.exceptions import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from segserve_common.kube.kinds import Json


async def watched(
    kubeconfig: Path, kind: type[Any], namespace: str, labels: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[str, Json]]:
    """Yield (event, object) of a kind for ever; after an interruption, all that there is comes again as ADDED."""
    config = KubeConfig.from_file(kubeconfig)
    client = AsyncClient(config, timeout=httpx2.Timeout(30, read=None))
    while True:
        try:
            async for event, found in client.watch(kind, namespace=namespace, labels=dict(labels or {})):
                yield event, found.to_dict()
        except (ApiError, httpx2.HTTPError):
            continue  # too old a version to go on from, most of all
