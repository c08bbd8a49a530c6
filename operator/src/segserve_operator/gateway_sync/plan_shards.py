"""Joins a plan from the last readable content of each of its shards."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from segserve_common.kube.names import SHARDS, plan_name
from segserve_common.kube.shards import content_of, unpack, version_of
from segserve_operator.adapters.traffic.plans import load_plan
from segserve_operator.core.traffic import TrafficPlan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_builder.cluster.config_map_watch import ConfigMap

_LOG = logging.getLogger(__name__)
_MESSAGE_LENGTH: Final = 500


@dataclass(frozen=True, slots=True)
class ShardContent:
    """A plan, the versions of its shards, and by shard why newer content was refused."""

    plan: TrafficPlan
    versions: Mapping[str, str]
    refused: Mapping[str, str]


class PlanShards:
    """Collects shards. Not for use from several threads at once."""

    def __init__(self, pool: str) -> None:
        self._shards = {plan_name(pool, shard): str(shard) for shard in range(SHARDS)}
        self._plans: dict[str, TrafficPlan] = {}
        self._versions: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the ConfigMaps."""
        return tuple(self._shards)

    @property
    def content(self) -> ShardContent | None:
        """The plan as last read, None until every shard has been read once."""
        if len(self._plans) < SHARDS:
            return None
        plan = TrafficPlan.joined(self._plans[shard] for shard in sorted(self._plans))
        return ShardContent(plan, dict(self._versions), dict(self._refused))

    def take(self, name: str, config_map: ConfigMap | None) -> None:
        """Read a ConfigMap, None if it was deleted; a deleted, empty or unreadable one changes no route."""
        packed = content_of(config_map) if config_map is not None else None
        if packed is None:
            _LOG.warning("%s is empty or gone; its last content stays in force", name)
            return
        shard, version = self._shards[name], version_of(packed)
        if version == self._versions.get(shard):
            self._refused.pop(shard, None)
            return
        try:
            self._plans[shard] = _sharing(load_plan(unpack(packed)), self._plans.get(shard))
        except (ValueError, TypeError, LookupError) as error:
            _LOG.error("%s cannot be read; its last content stays in force: %s", name, error)
            self._refused[shard] = f"version {version}: {str(error)[:_MESSAGE_LENGTH]}"
        else:
            self._versions[shard] = version
            self._refused.pop(shard, None)


def _sharing(plan: TrafficPlan, former: TrafficPlan | None) -> TrafficPlan:
    """Return an equal plan with the former routes where these are equal: a comparison of the two is then immediate."""
    known = {route.model: route for route in former.routes} if former is not None else {}
    routes = (old if (old := known.get(route.model, route)) == route else route for route in plan.routes)
    return replace(plan, routes=tuple(routes))
