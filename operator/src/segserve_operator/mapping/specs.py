"""A model's manifest as the core's values: its spec, or why that cannot be read, and its annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from segserve_builder.spec.reading import read_tolerantly
from segserve_operator.api.access import AccessRules
from segserve_operator.api.segmentation_model import Limits, Rate
from segserve_operator.api.triton_pool import Gateway
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.traffic import AccessRule, Callers, CredentialKind, RequestRate, RouteLimits
from segserve_operator.core.world.observed import MinReady, Wanted
from segserve_operator.mapping.reading import read_model

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


def access_of(manifest: Mapping[str, Any]) -> tuple[AccessRule, ...] | None:
    """Return who may use a model: None if its spec does not say; no rule if nobody can tell, so nobody may.

    It is read by itself, since it also holds for what serves while the rest of the spec cannot be read.
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

    It is read by itself, as rules of access are; of a newer release's limits those hold that this one knows.
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
