"""Records of revisions as V1ControllerRevisions, whose data is immutable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubernetes.aio.client import V1ControllerRevision, V1ObjectMeta, V1OwnerReference

from segserve_common.canonical import json_digest
from segserve_common.kube.kinds import MODELS, REVISIONS, Json, Kind
from segserve_common.kube.names import MANAGED_LABELS, MODEL_LABEL, POOL_LABEL, REVISION_LABEL
from segserve_operator.adapters.kube.objects.context import rendered
from segserve_operator.mapping.notes import metadata_of

if TYPE_CHECKING:
    from segserve_builder.agent.protocol import AssignedModel
    from segserve_operator.core.world.restore import RevisionNote


def revision_object(
    *, namespace: str, pool: str, model: str, uid: str, revision: str, assigned: AssignedModel, number: int
) -> Json:
    """Return the record of a revision; `number` is higher than those of the model's earlier ones.

    `model` and `uid` are of its owner. The name contains a digest of the content, so that a changed record of the
    same revision, as after an artifact was moved, is another object.
    """
    # Of all fields, defaults too: a name depends on the content, not on the form in which it is stored.
    content = json_digest(assigned.model_dump(mode="json", by_alias=True, exclude_none=True), 8)
    owner = V1OwnerReference(
        api_version=MODELS.api_version,
        kind=MODELS.name,
        name=model,
        uid=uid,
        controller=True,
        block_owner_deletion=False,
    )
    labels = {**MANAGED_LABELS, POOL_LABEL: pool, MODEL_LABEL: model, REVISION_LABEL: revision}
    metadata = V1ObjectMeta(name=f"{revision}-{content}", namespace=namespace, labels=labels, owner_references=[owner])
    return rendered(REVISIONS, V1ControllerRevision(metadata=metadata, data=assigned.to_json(), revision=number))


def role_patch(note: RevisionNote, model: str, uid: str) -> Json:
    """Return the patch that writes a note into a revision's record and makes the model of this `uid` its owner."""
    return {"metadata": {**metadata_of(note), "ownerReferences": [owner_reference(MODELS, model, uid)]}}


def has_role(record: Json, note: RevisionNote, uid: str) -> bool:
    """Return whether a record has a note and belongs to the model of this `uid`."""
    metadata, desired = record["metadata"], metadata_of(note)
    held = ((metadata.get(part) or {}).items() >= desired[part].items() for part in desired)
    return all(held) and [owner.get("uid") for owner in metadata.get("ownerReferences") or ()] == [uid]


def owner_reference(kind: Kind, name: str, uid: str) -> Json:
    """Return the reference to the object with which another one is deleted."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
