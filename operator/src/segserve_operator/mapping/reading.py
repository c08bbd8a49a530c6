"""Resources that are stored, read as they were written; what cannot be read is reported, and what serves goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from segserve_builder.spec.reading import read_tolerantly
from segserve_operator.api.loading import parse
from segserve_operator.api.meta import SpecError
from segserve_operator.api.segmentation_model import RolesStatus, SegmentationModel, SegmentationModelStatus
from segserve_operator.api.segmentation_rollout import SegmentationRollout
from segserve_operator.api.triton_pool import TritonPool, TritonPoolStatus
from segserve_operator.core.failure import STATUS_UNREADABLE, FailureReason
from segserve_operator.mapping.manifests import named_models

_ROLES = ("roles", "roles.stable", "roles.candidate", "roles.previous")


def read_status(plain: Mapping[str, Any]) -> tuple[SegmentationModelStatus, FailureReason | None]:
    """Return a model's status, and why its roles cannot be relied on: then it has no roles.

    On one machine a text stands for roles that were lost with their file.
    """
    if isinstance(plain, Mapping) and isinstance(lost_roles := plain.get("roles"), str):
        status, _ = read_status({**plain, "roles": {}})
        return status, FailureReason(STATUS_UNREADABLE, lost_roles)
    try:
        status, left_out = read_tolerantly(SegmentationModelStatus, plain)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        return SegmentationModelStatus(), FailureReason(STATUS_UNREADABLE, f"the status cannot be read: {error}")
    lost = [path for path in left_out if path in _ROLES]
    if not lost:
        return status, None
    message = f"{', '.join(lost)} of the status cannot be read"
    return status.model_copy(update={"roles": RolesStatus()}), FailureReason(STATUS_UNREADABLE, message)


def read_pool_status(plain: Mapping[str, Any]) -> TritonPoolStatus:
    """Return a pool's status as far as it can be read: all of it follows from the cluster again."""
    try:
        return read_tolerantly(TritonPoolStatus, plain)[0]
    except ValidationError:
        return TritonPoolStatus()


def read_pool(manifest: Mapping[str, Any], name: str) -> TritonPool:
    """Return a stored pool without its status; raises `SpecError`."""
    pool = parse({**_head(manifest), "spec": manifest.get("spec") or {}}, name)
    assert isinstance(pool, TritonPool)
    return pool


def read_model(
    manifest: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]] | None = None
) -> SegmentationModel | FailureReason:
    """Return a stored model without its status, or why its spec cannot be rolled out.

    `others` are the manifests of the models that it may name as its second network, by name; without them a model that
    names one cannot give its pipeline.
    """
    networks = {}
    for at, name in named_models(manifest).items():
        if others is not None and name in others:
            other = read_model(others[name])
            if isinstance(other, FailureReason):
                return FailureReason(other.reason, f"spec.{at}.model: {other.message}")
            networks[name] = other.spec
    plain = {**_head(manifest), "spec": manifest["spec"]}
    try:
        model = parse(plain, manifest["metadata"]["name"], None if others is None else networks)
    except SpecError as error:
        return FailureReason(error.reason, str(error))
    assert isinstance(model, SegmentationModel)
    return model


def read_rollout(manifest: Mapping[str, Any]) -> SegmentationRollout:
    """Return a rollout's record; raises `ValueError` if it is damaged."""
    return SegmentationRollout.model_validate(
        {**_head(manifest), "spec": manifest.get("spec") or {}, "status": manifest.get("status") or {}}
    )


def _head(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies an object; the rest of its metadata belongs to the API server."""
    name = {"name": manifest["metadata"]["name"]}
    return {**{key: manifest[key] for key in ("apiVersion", "kind") if key in manifest}, "metadata": name}
