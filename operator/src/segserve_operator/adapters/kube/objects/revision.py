"""Records of revisions as V1ControllerRevisions, whose data is immutable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubernetes.aio.client import V1ControllerRevision, V1ObjectMeta, V1OwnerReference

from segserve_common.canonical import json_digest
from segserve_common.kube.kinds import MODELS, REVISIONS, Json
from segserve_common.kube.names import MANAGED_LABELS, MODEL_LABEL, POOL_LABEL, REVISION_LABEL
from segserve_operator.adapters.kube.objects.context import rendered

if TYPE_CHECKING:
    from segserve_builder.agent.protocol import AssignedModel


def revision_object(
    *, namespace: str, pool: str, model: str, uid: str, revision: str, assigned: AssignedModel, number: int
) -> Json:
    """Return the record of a revision; `number` is higher than those of the model's earlier ones.

    `model` and `uid` are of its owner. The name contains a digest of the content, so that a changed record of the
    same revision, as after an artifact was moved, is another object.
    """
    data = assigned.model_dump(mode="json", by_alias=True, exclude_none=True)
    content = json_digest(data, 8)
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
    return rendered(REVISIONS, V1ControllerRevision(metadata=metadata, data=data, revision=number))
