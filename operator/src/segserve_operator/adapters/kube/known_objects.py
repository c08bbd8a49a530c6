"""Objects that the view keeps: labels are anybody's to give, so they alone do not make the operator hold an object."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, POOLS
from segserve_common.kube.names import (
    COMPONENT_LABEL,
    GATEWAY,
    GROUP_LABEL,
    SERVER,
    SHARDS,
    assignment_name,
    plan_name,
    report_name,
    reports_name,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_common.kube.kinds import Json, Kind

MAX_KEPT_BYTES: Final = 64 * 2**20
"""Content of ConfigMaps of one namespace that is kept; 1,000 servers with 100 models each have about 20 MB."""


@dataclass(slots=True)
class KnownObjects:
    """Distinguishes what belongs to a pool or its models from what only has its labels.

    Of ConfigMaps, which hold most, only those are known that have the name that their group gives them, and of each
    namespace at most `max_kept_bytes`.
    """

    max_kept_bytes: int = MAX_KEPT_BYTES
    _sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    _kept: Counter[str] = field(default_factory=Counter)

    def knows(self, kind: Kind, item: Json, pool: str | None, *, has_owner: bool) -> bool:
        """Return whether to keep an object; `has_owner` says whether its `pool`, or a model of that, exists."""
        if kind in (MODELS, POOLS):
            return True
        if pool is None or not has_owner:
            return False
        return kind != CONFIG_MAPS or (_is_named_by_us(item, pool) and self._has_room(item))

    def forget(self, kind: Kind, namespace: str, name: str) -> None:
        """Count an object no longer, which was deleted or is not known any more."""
        if kind == CONFIG_MAPS:
            self._kept[namespace] -= self._sizes.pop((namespace, name), 0)

    def _has_room(self, item: Json) -> bool:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        size = _size(item)
        before = self._sizes.get((namespace, name), 0)
        if self._kept[namespace] - before + size > self.max_kept_bytes:
            return False
        self._kept[namespace] += size - before
        self._sizes[namespace, name] = size
        return True


def _is_named_by_us(item: Json, pool: str) -> bool:
    metadata = item["metadata"]
    labels = metadata.get("labels") or {}
    name, group = metadata["name"], labels.get(GROUP_LABEL, "")
    if labels.get(COMPONENT_LABEL) == GATEWAY:
        return name in (reports_name(pool, GATEWAY), *(plan_name(pool, shard) for shard in range(SHARDS)))
    if labels.get(COMPONENT_LABEL) != SERVER or not group:
        return False
    shards = (assignment_name(pool, group, shard) for shard in range(SHARDS))
    owners = metadata.get("ownerReferences") or ()
    return name in (reports_name(pool, group), *shards, *(report_name(owner["name"]) for owner in owners))


def _size(item: Mapping[str, Mapping[str, str] | None]) -> int:
    parts = (item.get("data") or {}, item.get("binaryData") or {})
    return sum(len(key) + len(value) for part in parts for key, value in part.items())
