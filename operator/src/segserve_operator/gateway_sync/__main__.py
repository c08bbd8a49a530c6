"""The containers of a gateway pod: `python3 -m segserve_operator.gateway_sync prepare|follow|drain`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from segserve_common.api_errors import ApiError
from segserve_common.kube.client import KubeClient, connect
from segserve_common.kube.kinds import CONFIG_MAPS
from segserve_common.logs import LogSettings, LogSettingsError, start_logging
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError
from segserve_operator.gateway_sync.plan_shards import PlanShards
from segserve_operator.gateway_sync.settings import Settings, SidecarSettingsError
from segserve_operator.gateway_sync.sidecar import follow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


PAUSE_S: Final = 1.0
TIMEOUT_S: Final = 5.0
_LOG = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Run the task that the one argument names."""
    task = TASKS.get(arguments[0]) if len(arguments) == 1 else None
    if task is None:
        sys.exit(f"the arguments are {list(arguments)!r}; allowed is one of {', '.join(map(repr, TASKS))}")
    try:
        start_logging(LogSettings.of(os.environ))
        settings = Settings.of(os.environ)
    except (LogSettingsError, SidecarSettingsError) as error:
        sys.exit(str(error))
    task(settings)


def _prepare(settings: Settings) -> None:
    prepare(settings, connect(settings.namespace))


def _follow(settings: Settings) -> None:
    asyncio.run(follow(settings, connect(settings.namespace)))


def _drain(settings: Settings) -> None:
    """Make callers disconnect, and wait for them: the kubelet runs this before it ends the pod's processes."""
    try:
        asyncio.run(settings.traffic().drain())
    except EnvoyUnreachableError as error:
        sys.exit(str(error))  # without Envoy there is no caller to wait for
    time.sleep(settings.drain_s)


TASKS: Final[Mapping[str, Callable[[Settings], None]]] = {"prepare": _prepare, "follow": _follow, "drain": _drain}


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


if __name__ == "__main__":
    main(sys.argv[1:])
