"""Records of rollouts on a cluster, cached while a rollout can still change."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from segserve_common.api_errors import ApiError, ConflictError, NotFoundError
from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, ROLLOUTS
from segserve_common.kube.names import (
    MODEL_LABEL,
    OUTCOME_ANNOTATION,
    OUTCOME_LABEL,
    POOL_LABEL,
    ROLLOUT_LABEL,
    chunk_name,
)
from segserve_common.kube.shards import CONTENT_KEY, content_of
from segserve_operator.adapters.kube.objects.group import owner_reference
from segserve_operator.api.segmentation_rollout import MESSAGE_MAX_LENGTH, SegmentationRolloutStatus
from segserve_operator.mapping.notes import outcome_of
from segserve_operator.mapping.packed_evidence import (
    CHUNK_ROWS,
    ROWS_BYTES,
    UnreadableRecordError,
    chunks,
    pack_rows_within,
    unpack_rows,
)
from segserve_operator.mapping.rollouts import HISTORY, manifest_of, record_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import PoolKey
    from segserve_operator.core.rollout.record import Record, Row


CONCURRENT_READS: Final = 16

log = logging.getLogger("segserve")

POOL_RECORDS_BYTES: Final = 1536 * 1024
"""Rollouts of a pool, those under way included; its models share it equally, and each keeps its latest one anyway."""
RECORD_BYTES: Final = 24 * 1024
"""Size that the record of a rollout usually reaches."""
# Without `managed-by`: the operator watches objects with both labels, but reads records only when needed.
_LABELS: Final = {"app.kubernetes.io/part-of": "segserve"}


@dataclass(frozen=True, slots=True)
class CachedRollout:
    """A record as last read or written, None if the object cannot be parsed, and the `chunks` that are stored."""

    uid: str
    version: str
    record: Record | None = None
    chunks: tuple[tuple[Row, ...], ...] = ()
    outcome: str = ""


@dataclass(slots=True)
class ClusterRollouts:
    """The records of one pool's rollouts.

    They are not watched: only the operator writes them, and thousands of old ones would fill its memory. A write has
    the last resourceVersion as its precondition; after a conflict the record is read again.
    """

    api: Api
    key: PoolKey
    clock: Callable[[], float]
    cache: dict[str, CachedRollout] = field(default_factory=dict)
    models: int = 1
    """Models of the pool, which share the room for records."""
    named: Collection[str] = ()
    """Rollouts that models' statuses name, which are never deleted."""

    async def read(self, names: Collection[str]) -> Mapping[str, Record]:
        """Return the records with these names; those that are missing or cannot be read are left out."""
        for name in self.cache.keys() - set(names):
            del self.cache[name]
        slots = asyncio.Semaphore(CONCURRENT_READS)
        await asyncio.gather(*(self._read(name, slots) for name in names if name not in self.cache))
        records = ((name, self.cache[name].record) for name in names if name in self.cache)
        return {name: record for name, record in records if record is not None}

    async def write(self, record: Record, model_uid: str) -> None:
        """Write a record: the object, then the rows that do not fit into it, last the status that refers to them.

        Raises `ConflictError` if the object has changed since it was read.
        """
        try:
            await self._put(record, model_uid)
        except NotFoundError as error:
            log.info("SegmentationRollout %s/%s is created again: %s", self.key.namespace, record.name, error)
            await self._put(record, model_uid)

    async def _put(self, record: Record, model_uid: str) -> None:
        if record.name not in self.cache:
            await self._create(record, model_uid)
        try:
            await self._write(record, self.cache[record.name])
        except ApiError:
            del self.cache[record.name]  # the server may have stored the write or not
            raise

    async def _create(self, record: Record, model_uid: str) -> None:
        namespace = self.key.namespace
        manifest = rollout_object(record, namespace=namespace, pool=self.key.pool, uid=model_uid)
        try:
            item = await self.api.create(ROLLOUTS, namespace, manifest)
        except ConflictError:
            item = await self.api.get(ROLLOUTS, namespace, record.name)
        else:
            items = await self.api.list(ROLLOUTS, self.key.namespace, {MODEL_LABEL: record.model})
            others = [item for item in items if item["metadata"]["name"] != record.name]
            for name in expired_records(others, room_for_records(self.models), HISTORY, self.named):
                await self.api.delete(ROLLOUTS, self.key.namespace, name)
        self.cache[record.name] = _cached(item)

    async def _write(self, record: Record, cached: CachedRollout) -> None:
        record_chunks = chunks(record.rows)
        namespace = self.key.namespace
        for number, rows in enumerate(record_chunks):
            if cached.chunks[number : number + 1] != (rows,):
                content = pack_rows_within(rows, ROWS_BYTES)
                manifest = evidence_config_map(
                    record, number, content, namespace=namespace, pool=self.key.pool, uid=cached.uid
                )
                await self.api.apply(CONFIG_MAPS, namespace, manifest)
        outcome = outcome_of(record)
        if outcome != cached.outcome and outcome:
            last = record.decisions[-1] if record.decisions else None
            # In the metadata, as backups often have no status.
            message = (f"{last.reason}: {last.message}" if last is not None else "")[:MESSAGE_MAX_LENGTH]
            annotations, labels = {OUTCOME_ANNOTATION: message}, {OUTCOME_LABEL: outcome}
            fenced = {"metadata": {"labels": labels, "annotations": annotations, "resourceVersion": cached.version}}
            cached = _cached(await self.api.patch(ROLLOUTS, namespace, record.name, fenced), cached.record)
        status = status_of(record, datetime.fromtimestamp(self.clock(), UTC))
        # Null removes a field that an earlier status had.
        absent = dict.fromkeys(field.alias or name for name, field in SegmentationRolloutStatus.model_fields.items())
        patch = {"metadata": {"resourceVersion": cached.version}, "status": {**absent, **status}}
        item = await self.api.patch(ROLLOUTS, namespace, record.name, patch, status=True)
        self.cache[record.name] = _cached(item, record, record_chunks)

    async def _read(self, name: str, slots: asyncio.Semaphore) -> None:
        async with slots:
            try:
                item = await self.api.get(ROLLOUTS, self.key.namespace, name)
            except NotFoundError:
                return
            chunked_rows = await self._rows(name, (item.get("status") or {}).get("chunkedRows", 0))
        try:
            record = record_of(item, chunked_rows)
        except UnreadableRecordError as error:
            log.warning("%s: %s; the rollout goes on from its model's status", self.key.namespace, error)
            self.cache[name] = _cached(item)
        else:
            self.cache[name] = _cached(item, record, chunks(record.rows))

    async def _rows(self, name: str, count: int) -> tuple[Row, ...]:
        """Return the first `count` rows, which are stored in ConfigMaps; none if any of these is lost."""
        rows: list[Row] = []
        for number in range(-(-count // CHUNK_ROWS)):
            try:
                chunk = await self.api.get(CONFIG_MAPS, self.key.namespace, chunk_name(name, number))
                rows += unpack_rows(content_of(chunk) or "")
            except (NotFoundError, ValueError) as error:
                log.warning("SegmentationRollout %s/%s lost old evidence: %s", self.key.namespace, name, error)
                return ()
        return tuple(rows[:count])


def _cached(item: Json, record: Record | None = None, record_chunks: tuple[tuple[Row, ...], ...] = ()) -> CachedRollout:
    metadata = item["metadata"]
    outcome = (metadata.get("labels") or {}).get(OUTCOME_LABEL, "")
    return CachedRollout(metadata["uid"], metadata["resourceVersion"], record, record_chunks, outcome)


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
    """Return the names of the records that have no room, oldest first, without the ones in `keep`."""
    # A record is never written after its rollout has ended, so versions are in the order of their ends.
    newest_first = sorted(items, key=lambda item: -int(item["metadata"]["resourceVersion"]))
    names, used = [], 0
    for number, item in enumerate(newest_first):
        used += record_bytes(item)
        if (number >= most or used > room_bytes) and item["metadata"]["name"] not in keep:
            names.append(str(item["metadata"]["name"]))
    return names[::-1]


def rollout_object(record: Record, *, namespace: str, pool: str, uid: str) -> dict[str, Any]:
    """Return a record's object without its status; `uid` is of its model, with which it is deleted."""
    manifest = manifest_of(record)
    metadata = {
        "name": record.name,
        "namespace": namespace,
        "labels": {**_LABELS, POOL_LABEL: pool, MODEL_LABEL: record.model},
        "ownerReferences": [owner_reference(MODELS, record.model, uid)],
    }
    return {**manifest, "metadata": metadata}


def evidence_config_map(
    record: Record, number: int, content: str, *, namespace: str, pool: str, uid: str
) -> dict[str, Any]:
    """Return one chunk of a record's oldest rows; `content` is packed, `uid` of the record that owns it."""
    metadata = {
        "name": chunk_name(record.name, number),
        "namespace": namespace,
        "labels": {**_LABELS, POOL_LABEL: pool, MODEL_LABEL: record.model, ROLLOUT_LABEL: record.name},
        "ownerReferences": [owner_reference(ROLLOUTS, record.name, uid)],
    }
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.name,
        "metadata": metadata,
        "binaryData": {CONTENT_KEY: content},
    }
