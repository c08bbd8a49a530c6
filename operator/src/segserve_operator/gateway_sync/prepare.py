"""Writes what Envoy starts from, once, before it starts: the plan that the API shows, or else the last one."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from segserve_builder.cluster.config_maps import ApiError
from segserve_operator.gateway_sync.plan_shards import PlanShards

if TYPE_CHECKING:
    from segserve_builder.cluster.config_maps import ConfigMaps
    from segserve_operator.gateway_sync.settings import Settings

_PAUSE_S: Final = 1.0
_PATIENCE_S: Final = 5.0
_LOG = logging.getLogger(__name__)


def prepare(settings: Settings, config_maps: ConfigMaps) -> None:
    """Write the files.

    Where there is a plan of before (the node was restarted), it is good enough once the API has kept us waiting for
    a while; where there is none we wait as long as it takes: an Envoy without a plan is of no use to anybody.
    """
    traffic, shards = settings.traffic(), PlanShards(settings.pool)
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        _read(shards, config_maps)
        if (told := shards.told) is not None:
            traffic.prepare(told.plan)
            return
        if traffic.has_plan and time.monotonic() > deadline_s:
            _LOG.warning("the plan of before is taken")
            traffic.prepare()
            return
        time.sleep(_PAUSE_S)


def _read(shards: PlanShards, config_maps: ConfigMaps) -> None:
    for name in shards.names:
        try:
            shards.take(name, config_maps.get(name))
        except ApiError as error:
            _LOG.warning("%s cannot be read: %s", name, error)
            return
