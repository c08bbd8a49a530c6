"""Writes the files with which Envoy starts: with the plan of the API server, or else with the earlier one."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from segserve_common.api_errors import ApiError
from segserve_common.kube.client import KubeClient
from segserve_common.kube.kinds import CONFIG_MAPS
from segserve_operator.gateway_sync.plan_shards import PlanShards

if TYPE_CHECKING:
    from segserve_operator.gateway_sync.settings import Settings

PAUSE_S: Final = 1.0
TIMEOUT_S: Final = 5.0
_LOG = logging.getLogger(__name__)


def prepare(settings: Settings, client: KubeClient) -> None:
    """Write the files.

    An earlier plan, which exists after a restart of the node, is used if the API server does not answer within
    `TIMEOUT_S`. Without one this waits until it does: an Envoy without a plan could serve no requests.
    """
    traffic, shards = settings.traffic(), PlanShards(settings.pool)
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        _read(shards, client)
        if (content := shards.content) is not None:
            traffic.prepare(content.plan)
            return
        if traffic.has_plan and time.monotonic() > deadline_s:
            _LOG.warning("the earlier plan is used")
            traffic.prepare()
            return
        time.sleep(PAUSE_S)


def _read(shards: PlanShards, client: KubeClient) -> None:
    for name in shards.names:
        try:
            shards.take(name, client.get(CONFIG_MAPS, name))
        except ApiError as error:
            _LOG.warning("%s cannot be read: %s", name, error)
            return
