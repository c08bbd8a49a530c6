"""Rollouts' records on a cluster: read once, then known from our own writes; only what goes on is kept in memory."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from segserve_common.kube.errors import ApiError, ConflictError, NotFoundError
from segserve_common.kube.kinds import CONFIG_MAPS, ROLLOUTS
from segserve_common.kube.names import MODEL_LABEL, chunk_name
from segserve_common.kube.shards import content_of
from segserve_operator.adapters.kube.objects.rollout import evidence_config_map, rollout_object
from segserve_operator.api.segmentation_rollout import SegmentationRolloutStatus
from segserve_operator.mapping.packed_evidence import (
    CHUNK_ROWS,
    UnreadableRecordError,
    chunks,
    pack_rows,
    unpack_rows,
)
from segserve_operator.mapping.rollouts import HISTORY, record_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import PoolKey
    from segserve_operator.core.rollout.record import Record, Row

READS_AT_ONCE: Final = 16

log = logging.getLogger("segserve")


@dataclass(frozen=True, slots=True)
class CachedRollout:
    """A record as it was last read or written; None where the object cannot be read. `chunks` are those written."""

    uid: str
    version: str
    record: Record | None = None
    chunks: tuple[tuple[Row, ...], ...] = ()


@dataclass(slots=True)
class ClusterRollouts:
    """The records of one pool's rollouts.

    They are not watched: nobody else writes them, and thousands of old ones would be in the way. A write refers to the
    state that was read, so that what somebody changed meanwhile is read anew.
    """

    api: Api
    key: PoolKey
    clock: Callable[[], float]
    known: dict[str, CachedRollout] = field(default_factory=dict)

    async def read(self, names: Collection[str]) -> Mapping[str, Record]:
        """Return the records with these names; what is not there or cannot be read is left out."""
        for name in self.known.keys() - set(names):
            del self.known[name]
        turns = asyncio.Semaphore(READS_AT_ONCE)
        await asyncio.gather(*(self._read(name, turns) for name in names if name not in self.known))
        records = ((name, self.known[name].record) for name in names if name in self.known)
        return {name: record for name, record in records if record is not None}

    async def write(self, record: Record, model_uid: str) -> None:
        """Write a record: the object, then the rows that are kept apart, last the status that refers to them.

        Raises `ConflictError` where the object is not as it was seen.
        """
        try:
            await self._put(record, model_uid)
        except NotFoundError as error:
            log.info("SegmentationRollout %s/%s is made anew: %s", self.key.namespace, record.name, error)
            await self._put(record, model_uid)

    async def _put(self, record: Record, model_uid: str) -> None:
        if record.name not in self.known:
            await self._create(record, model_uid)
        try:
            await self._write(record, self.known[record.name])
        except ApiError:
            del self.known[record.name]  # what became of it is not known
            raise

    async def _create(self, record: Record, model_uid: str) -> None:
        namespace = self.key.namespace
        manifest = rollout_object(record, namespace=namespace, pool=self.key.pool, uid=model_uid)
        try:
            found = await self.api.create(ROLLOUTS, namespace, manifest)
        except ConflictError:
            found = await self.api.get(ROLLOUTS, namespace, record.name)
        else:
            await self._forget_oldest(record)
        self.known[record.name] = _known(found)

    async def _write(self, record: Record, known: CachedRollout) -> None:
        apart = chunks(record.rows)
        namespace = self.key.namespace
        for number, rows in enumerate(apart):
            if known.chunks[number : number + 1] != (rows,):
                content = pack_rows(rows)
                manifest = evidence_config_map(
                    record, number, content, namespace=namespace, pool=self.key.pool, uid=known.uid
                )
                await self.api.apply(CONFIG_MAPS, namespace, manifest)
        wanted = status_of(record, datetime.fromtimestamp(self.clock(), UTC))
        absent = dict.fromkeys(field.alias or name for name, field in SegmentationRolloutStatus.model_fields.items())
        patch = {"metadata": {"resourceVersion": known.version}, "status": {**absent, **wanted}}
        found = await self.api.patch(ROLLOUTS, namespace, record.name, patch, status=True)
        self.known[record.name] = _known(found, record, apart)

    async def _forget_oldest(self, latest: Record) -> None:
        # One that has ended is never written again, so versions are in the order of their ends.
        found = await self.api.versions(ROLLOUTS, self.key.namespace, {MODEL_LABEL: latest.model})
        others = sorted((int(version), name) for (_, name), version in found.items() if name != latest.name)
        for _, name in others[: max(len(others) - HISTORY, 0)]:
            await self.api.delete(ROLLOUTS, self.key.namespace, name)

    async def _read(self, name: str, turns: asyncio.Semaphore) -> None:
        async with turns:
            try:
                found = await self.api.get(ROLLOUTS, self.key.namespace, name)
            except NotFoundError:
                return
            apart = await self._rows(name, (found.get("status") or {}).get("chunkedRows", 0))
        try:
            record = record_of(found, apart)
        except UnreadableRecordError as error:
            log.warning("%s: %s; the rollout goes on from its model's status", self.key.namespace, error)
            self.known[name] = _known(found)
        else:
            self.known[name] = _known(found, record, chunks(record.rows))

    async def _rows(self, name: str, count: int) -> tuple[Row, ...]:
        """Return the rows that are kept apart; none where any of them is lost."""
        found: list[Row] = []
        for number in range(-(-count // CHUNK_ROWS)):
            try:
                chunk = await self.api.get(CONFIG_MAPS, self.key.namespace, chunk_name(name, number))
                found += unpack_rows(content_of(chunk) or "")
            except (NotFoundError, ValueError) as error:
                log.warning("SegmentationRollout %s/%s lost old evidence: %s", self.key.namespace, name, error)
                return ()
        return tuple(found[:count])


def _known(found: Json, record: Record | None = None, apart: tuple[tuple[Row, ...], ...] = ()) -> CachedRollout:
    metadata = found["metadata"]
    return CachedRollout(metadata["uid"], metadata["resourceVersion"], record, apart)
