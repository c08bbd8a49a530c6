"""The record of how a revision is served: a ControllerRevision, whose data the API server never lets change."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from lightkube.models.meta_v1 import ObjectMeta, OwnerReference
from lightkube.resources.apps_v1 import ControllerRevision

from segserve_common.canonical import canonical_json
from segserve_common.kube.kinds import MODELS
from segserve_common.kube.names import MANAGED_LABELS, MODEL_LABEL, POOL_LABEL, REVISION_LABEL

if TYPE_CHECKING:
    from segserve_builder.agent.protocol import AssignedModel


def revision_object(
    *, namespace: str, pool: str, model: str, uid: str, revision: str, assigned: AssignedModel, number: int
) -> dict[str, Any]:
    """Return the record of a revision; `number` is higher than those of the model's earlier ones.

    `model` and `uid` are its owner's. Its name has a digest of the content: another record of the same revision,
    as of an artifact that was moved, is another object.
    """
    data = assigned.model_dump(mode="json", by_alias=True, exclude_none=True)
    content = hashlib.sha256(canonical_json(data).encode()).hexdigest()[:8]
    owner = OwnerReference(
        apiVersion=MODELS.api_version,
        kind=MODELS.name,
        name=model,
        uid=uid,
        controller=True,
        blockOwnerDeletion=False,
    )
    labels = {**MANAGED_LABELS, POOL_LABEL: pool, MODEL_LABEL: model, REVISION_LABEL: revision}
    metadata = ObjectMeta(name=f"{revision}-{content}", namespace=namespace, labels=labels, ownerReferences=[owner])
    return ControllerRevision(metadata=metadata, data=data, revision=number).to_dict()
