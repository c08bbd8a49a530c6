"""Bounds, in bytes, of records of changes that ended: all of it is in etcd, mostly of 2 to 8 GB."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from segserve_common.kube.kinds import Json

POOL_RECORDS_BYTES: Final = 1536 * 1024
"""Rollouts of a pool, those under way included; its models share it equally, and each keeps its latest one anyway."""

RECORD_BYTES: Final = 24 * 1024
"""Size that the record of a rollout usually reaches."""


def room_for_records(models: int) -> int:
    """Return the bytes that each of a pool's models may use for records beside the one of its latest rollout."""
    return max(POOL_RECORDS_BYTES // max(models, 1) - RECORD_BYTES, 0)


def record_bytes(item: Json) -> int:
    """Return the size of a SegmentationRollout, with the rows that are stored apart from it."""
    status = item.get("status") or {}
    apart, rows = int(status.get("chunkedRows") or 0), int(status.get("rows") or 0)
    evidence = len(status.get("evidence") or "")
    return len(json.dumps(item)) + (evidence * apart // (rows - apart) if rows > apart else 0)


def expired_records(items: Iterable[Json], room_bytes: int, most: int, keep: Collection[str]) -> list[str]:
    """Return the names of the records that have no room, oldest first; those in `keep` are never among them."""
    # A record is never written after its rollout has ended, so versions are in the order of their ends.
    newest_first = sorted(items, key=lambda item: -int(item["metadata"]["resourceVersion"]))
    names, used = [], 0
    for number, item in enumerate(newest_first):
        used += record_bytes(item)
        if (number >= most or used > room_bytes) and item["metadata"]["name"] not in keep:
            names.append(str(item["metadata"]["name"]))
    return names[::-1]
