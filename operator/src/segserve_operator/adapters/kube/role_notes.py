"""Notes of roles on ControllerRevisions: written after every change, read for models whose status was lost."""

from __future__ import annotations

import logging
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from segserve_common.api_errors import ApiError, NotFoundError
from segserve_common.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, MODELS, REVISIONS, ROLLOUTS
from segserve_common.kube.names import (
    GROUP_LABEL,
    MODEL_LABEL,
    OUTCOME_ANNOTATION,
    OUTCOME_LABEL,
    POOL_LABEL,
    REVISION_LABEL,
    ROLLOUT_LABEL,
)
from segserve_operator.adapters.kube.objects import main_group
from segserve_operator.adapters.kube.objects.group import has_role, owner_reference, role_patch
from segserve_operator.adapters.kube.pods import is_terminating
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.world.restore import ROLLED_BACK, is_blank, notes_of, with_roles_of
from segserve_operator.mapping.notes import note_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.contexts import PoolContexts
    from segserve_operator.adapters.kube.view import PoolKey, View
    from segserve_operator.core.world.observed import ModelObserved, ModelStatus
    from segserve_operator.core.world.restore import RevisionNote

RECORDS_UNREAD = "RecordsUnread"

log = logging.getLogger("segserve")


@dataclass(slots=True)
class RestoreCache:
    """Between passes: why a revision's last rollout was rolled back, and the models whose records get an owner anew."""

    rolled_back: dict[tuple[str, str], FailureReason | None] = field(default_factory=dict)
    adopted: set[str] = field(default_factory=set)
    kept: dict[str, tuple[ModelStatus, tuple[str, ...]]] = field(default_factory=dict)
    """For each model, the status and the versions of the records that agreed last."""


@dataclass(slots=True)
class RoleNotes:
    """The notes of one pool's models."""

    api: Api
    view: View
    contexts: PoolContexts
    key: PoolKey
    cache: RestoreCache

    async def restored(self, models: Mapping[str, ModelObserved], now_s: float) -> dict[str, ModelObserved]:
        """Return models, by uid, with the roles from notes and rollouts' outcomes if the status has none."""
        for known in [key for key in self.cache.rolled_back if key[0] not in models]:
            del self.cache.rolled_back[known]
        blank = {uid: model for uid, model in models.items() if is_blank(model)}
        if not blank:
            return dict(models)
        records = self._records()
        names = {model.name for model in blank.values()}
        self.cache.adopted |= {
            name for name, uid in ((model.name, uid) for uid, model in blank.items()) if not _owns(records[name], uid)
        } & names
        unread = await self._read_rollouts(blank)
        return {
            uid: self._restored(uid, model, records[model.name], now_s, unread) if uid in blank else model
            for uid, model in models.items()
        }

    async def _read_rollouts(self, blank: Mapping[str, ModelObserved]) -> FailureReason | None:
        """Read why the models' revisions were last rolled back, and return why some of that cannot be read.

        However many models are new, as at the first start, their namespace's records are listed once.
        """
        keys = {(uid, each.wanted.assigned.revision): each.name for uid, each in blank.items() if each.wanted}
        missing = {key: model for key, model in keys.items() if key not in self.cache.rolled_back}
        if not missing:
            return None
        labels = {MODEL_LABEL: next(iter(missing.values()))} if len(missing) == 1 else {}
        try:
            versions = await self.api.versions(ROLLOUTS, self.key.namespace, labels)
            # A record's name is the revision's, and the time of the start in hexadecimal digits.
            latest = {name.rpartition("-")[0]: name for name in sorted(name for _, name in versions)}
            for key in missing:
                name = latest.get(key[1])
                self.cache.rolled_back[key] = await self._rolled_back(name) if name is not None else None
        except ApiError as error:
            return FailureReason(RECORDS_UNREAD, f"records of former rollouts cannot be read: {error}")
        return None

    def _restored(
        self,
        uid: str,
        model: ModelObserved,
        records: Mapping[str, Json],
        now_s: float,
        unread: FailureReason | None,
    ) -> ModelObserved:
        read = {revision: note_of(record["metadata"]) for revision, record in records.items()}
        notes = {revision: self._moved(revision, note) for revision, note in read.items() if note is not None}
        rolled_back: FailureReason | None = None
        if model.wanted is not None:
            key = (uid, model.wanted.assigned.revision)
            if key not in self.cache.rolled_back:
                # Without them the revision might be promoted that was rolled back.
                return replace(model, wanted=None, problem=unread)
            rolled_back = self.cache.rolled_back[key]
        groups = self._groups()
        has_servers = any(note.role == "stable" and note.group in groups for note in notes.values())
        restored = with_roles_of(model, notes, rolled_back, now_s, has_servers=has_servers)
        if restored is not model:
            log.info("%s/%s: its roles are from the revisions' records", self.key.namespace, model.name)
        return restored

    async def _rolled_back(self, name: str) -> FailureReason | None:
        """Return why a rollout was rolled back, or the verdict of one that only judged; None otherwise."""
        with suppress(NotFoundError):
            metadata = (await self.api.get(ROLLOUTS, self.key.namespace, name))["metadata"]
            if (metadata.get("labels") or {}).get(OUTCOME_LABEL) in (ROLLED_BACK, Phase.JUDGED.label):
                reason, _, message = (metadata.get("annotations") or {}).get(OUTCOME_ANNOTATION, "").partition(": ")
                return FailureReason(reason if reason.isidentifier() else ROLLED_BACK, message or "it was rolled back")
        return None

    def _moved(self, revision: str, note: RevisionNote) -> RevisionNote:
        """Return a note with a group that exists, or that can be made from the present template."""
        context = self.contexts.get(self.key)
        if context is None or note.role not in ("stable", "previous"):
            return note
        main = main_group(context)
        template = main.rpartition("-")[2]
        if note.group in self._groups() or note.group.rpartition("-")[2] == template:
            return note
        return replace(note, group=main if note.role == "stable" else f"{revision}-{template}")

    def _groups(self) -> set[str]:
        deployments = self.view.of_pool(DEPLOYMENTS, self.key)
        return {(item["metadata"].get("labels") or {}).get(GROUP_LABEL, "") for item in deployments}

    def _records(self) -> dict[str, dict[str, Json]]:
        """Return the latest record of each revision, by model and revision."""
        records: dict[str, dict[str, Json]] = defaultdict(dict)
        found = [record for record in self.view.of_pool(REVISIONS, self.key) if not is_terminating(record)]
        for record in sorted(found, key=lambda record: int(record["revision"])):
            labels = record["metadata"].get("labels") or {}
            if MODEL_LABEL in labels and REVISION_LABEL in labels:
                records[labels[MODEL_LABEL]][labels[REVISION_LABEL]] = record
        return records

    async def keep(self, models: Iterable[ModelObserved]) -> int:
        """Write the notes that differ from the models' statuses, and return their number.

        One that cannot be written is written by a later pass: what serves does not depend on it.
        """
        records, written, former = self._records(), 0, self.cache.kept
        self.cache.kept = {}
        for model in models:
            resource = self.view.get(MODELS, self.key.namespace, model.name)
            if model.deleting or resource is None:
                continue
            versions = tuple(record["metadata"]["resourceVersion"] for record in records[model.name].values())
            self.cache.kept[model.name] = (model.status, versions)
            agreed = former.get(model.name)
            if agreed is not None and agreed[0] is model.status and agreed[1] == versions:
                continue
            uid = resource["metadata"]["uid"]
            for revision, note in notes_of(model.status).items():
                record = records[model.name].get(revision)
                if record is not None and not has_role(record, note, uid):
                    self.cache.kept.pop(model.name, None)
                    patch = role_patch(note, model.name, uid)
                    written += await self._patch(REVISIONS, record["metadata"]["name"], patch) is not None
            if model.name in self.cache.adopted:
                self.cache.adopted.discard(model.name)
                await self._adopt_rollouts(model.name, uid)
        return written

    async def _adopt_rollouts(self, model: str, uid: str) -> None:
        """Make a model the owner of its rollouts' records again, so that they end with it; a restore has new uids."""
        namespace, labels = self.key.namespace, {POOL_LABEL: self.key.pool, MODEL_LABEL: model}
        with suppress(ApiError):
            # In the order of their starts: the oldest are deleted in the order of the last writes.
            versions = await self.api.versions(ROLLOUTS, namespace, labels)
            for name in sorted((name for _, name in versions), key=lambda name: name.rpartition("-")[2]):
                owner = {"metadata": {"ownerReferences": [owner_reference(MODELS, model, uid)]}}
                rollout = await self._patch(ROLLOUTS, name, owner)
                if rollout is None:
                    continue
                owner = {"metadata": {"ownerReferences": [owner_reference(ROLLOUTS, name, rollout["metadata"]["uid"])]}}
                for _, chunk in await self.api.versions(CONFIG_MAPS, namespace, {ROLLOUT_LABEL: name}):
                    await self._patch(CONFIG_MAPS, chunk, owner)

    async def _patch(self, kind: Kind, name: str, patch: Json) -> Json | None:
        try:
            return await self.api.patch(kind, self.key.namespace, name, patch)
        except ApiError as error:
            log.warning("%s %s/%s: its note was not written: %s", kind.name, self.key.namespace, name, error)
            return None


def _owns(records: Mapping[str, Json], uid: str) -> bool:
    owners = [record["metadata"].get("ownerReferences") or () for record in records.values()]
    return all(owner.get("uid") == uid for each in owners for owner in each) and all(owners)
