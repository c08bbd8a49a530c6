"""Objects of a rollout's record: the SegmentationRollout, and ConfigMaps of its oldest evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, ROLLOUTS
from segserve_common.kube.names import (
    MODEL_LABEL,
    OUTCOME_ANNOTATION,
    OUTCOME_LABEL,
    POOL_LABEL,
    ROLLOUT_LABEL,
    chunk_name,
)
from segserve_common.kube.shards import CONTENT_KEY
from segserve_operator.adapters.kube.objects.revision import owner_reference
from segserve_operator.api.segmentation_rollout import MESSAGE_MAX_LENGTH
from segserve_operator.mapping.rollouts import manifest_of

if TYPE_CHECKING:
    from segserve_operator.core.rollout.record import Record

# Without `managed-by`: the operator watches objects with both labels, but reads records only when needed.
_LABELS: Final = {"app.kubernetes.io/part-of": "segserve"}


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


def outcome_patch(outcome: str, why: str) -> dict[str, Any]:
    """Return the patch that says in a record's metadata how its rollout ended: backups often have no status."""
    message = why[:MESSAGE_MAX_LENGTH]
    return {"metadata": {"labels": {OUTCOME_LABEL: outcome}, "annotations": {OUTCOME_ANNOTATION: message}}}
