"""A model's manifest as the core's values: its spec, or why that cannot be read, and its annotations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from segserve_builder.spec.reading import read_tolerantly
from segserve_operator.api.access import AccessRules
from segserve_operator.api.segmentation_model import Limits, Rate
from segserve_operator.api.triton_pool import Gateway
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.traffic import AccessRule, Callers, CredentialKind, RequestRate, RouteLimits
from segserve_operator.core.world.observed import MinReady, ModelObserved, ModelStatus, Roles, Wanted
from segserve_operator.mapping.manifests import annotations_of
from segserve_operator.mapping.reading import read_model, read_status
from segserve_operator.mapping.statuses import from_api, to_api

_ACCESS: Final = TypeAdapter(AccessRules)


def wanted_of(manifest: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> Wanted | FailureReason:
    """Read a SegmentationModel's spec; `others` are the manifests of the models that it may name, by name."""
    name = manifest["metadata"]["name"]
    model = read_model(manifest, others)
    if isinstance(model, FailureReason):
        return model
    return Wanted(
        assigned=model.spec.assigned(name),
        keep_previous_s=model.spec.keep_previous.total_seconds(),
        allow_class_changes=model.spec.allow_class_changes,
        policy=model.spec.rollout,
        slo=model.spec.slo,
        capture=model.spec.capture,
        progress_deadline_s=model.spec.progress_deadline.total_seconds(),
        drift=model.spec.drift,
    )


def model_of(manifest: Mapping[str, Any], spec: Wanted | FailureReason) -> ModelObserved:
    """Return a stored model; `spec` is its spec, or why that cannot be rolled out."""
    metadata = manifest["metadata"]
    deleted = metadata.get("deletionTimestamp")
    status, unreadable = read_status(manifest.get("status") or {})
    spec = unreadable or spec
    return ModelObserved(
        name=metadata["name"],
        generation=metadata["generation"],
        wanted=spec if isinstance(spec, Wanted) else None,
        problem=spec if isinstance(spec, FailureReason) else None,
        status=from_api(status),
        deleting=deleted is not None,
        deleted_s=datetime.fromisoformat(deleted).timestamp() if deleted is not None else math.inf,
        annotations=annotations_of(manifest),
        access=access_of(manifest),
        limits=limits_of(manifest),
    )


def model_status(status: ModelStatus, present: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return a model's status as JSON, in place of the stored one; roles that cannot be read stay."""
    former, unreadable = read_status(present)
    desired = to_api(status, former, now).to_dict()
    if unreadable is not None and status.roles == Roles() and "roles" in present:
        desired["roles"] = present["roles"]
    return desired


def access_of(manifest: Mapping[str, Any]) -> tuple[AccessRule, ...] | None:
    """Return who may use a model: None if its spec does not say; no rule, and so no caller, if that cannot be read.

    It is read separately, since it also holds for what serves while the rest of the spec cannot be read.
    """
    stated = manifest["spec"].get("access")
    if stated is None:
        return None
    try:
        rules = _ACCESS.validate_python(stated)
    except ValidationError:
        return ()
    return tuple(
        AccessRule(
            claim=rule.claim or "",
            values=rule.values or (),
            issuer=rule.issuer or "",
            keys=rule.keys or (),
            certificates=rule.certificates or (),
            callers=Callers(rule.callers) if rule.callers is not None else None,
        )
        for rule in rules
    )


def credentials_of(gateway: Gateway) -> frozenset[CredentialKind]:
    """Return the kinds of credentials that a pool's gateway takes."""
    auth = gateway.auth
    if auth is None:
        return frozenset()
    stated = {CredentialKind.TOKEN: auth.jwt, CredentialKind.KEY: auth.api_keys, CredentialKind.CERTIFICATE: auth.mtls}
    return frozenset(kind for kind, of_kind in stated.items() if of_kind)


def limits_of(manifest: Mapping[str, Any]) -> RouteLimits | None:
    """Return how much callers may send to a model, None if its spec does not limit it.

    It is read by itself, as rules of access are; those limits hold that can be read.
    """
    stated = manifest["spec"].get("limits")
    if stated is None:
        return None
    try:
        limits, _ = read_tolerantly(Limits, stated)
    except ValidationError:
        return None
    return RouteLimits(_rate_of(limits.per_caller), _rate_of(limits.total))


def _rate_of(rate: Rate | None) -> RequestRate:
    return RequestRate() if rate is None else RequestRate(rate.requests_per_second, rate.megabytes_per_second)


def min_ready_of(stated: int | str | None) -> MinReady:
    """Return a pool's `spec.minReady` in the core's form: a number of servers, a percentage, or the default."""
    if stated is None:
        return MinReady()
    return MinReady(stated) if isinstance(stated, int) else MinReady(percent=int(stated.rstrip("%")))
