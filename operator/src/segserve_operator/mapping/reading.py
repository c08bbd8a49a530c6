"""Resources that another release of segserve may have written, read with what this one knows of them.

What people write is read by `api.loading`, which refuses unknown fields. A spec with unknown fields that is stored
was accepted by a newer release: a pool goes on with the rest of it, a model rolls nothing out for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from segserve_builder.spec.reading import read_tolerantly, unknown_fields
from segserve_operator.api.errors import SpecError
from segserve_operator.api.former_fields import replacement_of
from segserve_operator.api.loading import parse
from segserve_operator.api.meta import ConditionStatus
from segserve_operator.api.segmentation_model import (
    CandidateState,
    RolesStatus,
    SegmentationModel,
    SegmentationModelStatus,
)
from segserve_operator.api.segmentation_rollout import RolloutPhase, SegmentationRollout
from segserve_operator.api.triton_pool import TritonPool, TritonPoolStatus
from segserve_operator.core.failure import STATUS_UNREADABLE, UNKNOWN_FIELD, FailureReason
from segserve_operator.mapping.manifests import named_models

_PHASES: Final = frozenset(phase.value for phase in RolloutPhase)
_ROLES: Final = ("roles", "roles.stable", "roles.candidate", "roles.previous")
_WHOLE: Final = ("spec", "spec.replicas", "spec.scaling", "spec.server", "spec.gateway", "spec.artifacts")
"""What of a pool has no safe default: servers would end, or artifacts be refused."""
_AUTH: Final = "spec.gateway.auth"
"""Without a part of it callers might come in whom nobody meant to let in."""

_OUTCOMES: Final = ("Pass", "Breach", "Undecided")


def read_status(plain: Mapping[str, Any]) -> tuple[SegmentationModelStatus, FailureReason | None]:
    """Return a model's status, and why its roles cannot be relied on: then it has none.

    On one machine a text stands for roles that were lost with their file.
    """
    if isinstance(plain, Mapping) and isinstance(lost_roles := plain.get("roles"), str):
        status, _ = read_status({**plain, "roles": {}})
        return status, FailureReason(STATUS_UNREADABLE, lost_roles)
    try:
        return SegmentationModelStatus.model_validate(plain), None
    except ValidationError:
        pass
    try:
        status, left_out = read_tolerantly(SegmentationModelStatus, _with_known_words(plain))
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


def read_pool(manifest: Mapping[str, Any], name: str) -> tuple[TritonPool, FailureReason | None]:
    """Return a stored pool without its status, and which of its fields this release ignores.

    Raises `SpecError` if the rest is not a valid pool.
    """
    plain = {**_head(manifest), "spec": manifest.get("spec") or {}}
    try:
        pool = parse(plain, name)
    except SpecError as error:
        try:
            known, left_out = read_tolerantly(TritonPool, plain)
        except ValidationError:
            raise error from None
        if set(_WHOLE).intersection(left_out) or any(f"{path}.".startswith(f"{_AUTH}.") for path in left_out):
            raise
        if any(replacement_of(path) is not None for path in left_out):
            raise  # an earlier release wrote it: without it pods would run elsewhere, or with less
        return known, FailureReason(UNKNOWN_FIELD, f"this release does not know {', '.join(left_out)}, and ignores it")
    assert isinstance(pool, TritonPool)
    return pool, None


def read_model(
    manifest: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]] | None = None
) -> SegmentationModel | FailureReason:
    """Return a stored model without its status, or why its spec cannot be rolled out.

    `others` are the manifests of the models that it may name as its second network, by name; without them a model that
    names one cannot give its pipeline.
    """
    plain = {**_head(manifest), "spec": manifest["spec"]}
    networks = {}
    for at, name in named_models(manifest).items():
        if others is not None and name in others:
            other = read_model(others[name])
            if isinstance(other, FailureReason):
                return FailureReason(other.reason, f"spec.{at}.model: {other.message}")
            networks[name] = other.spec
    try:
        model = parse(plain, manifest["metadata"]["name"], None if others is None else networks)
    except SpecError as error:
        unknown = unknown_fields(SegmentationModel, plain)
        if not unknown:
            return FailureReason(error.reason, str(error))
        message = (
            f"this release does not know {', '.join(unknown)}: it may change answers, so the spec is not rolled out, "
            f"and what serves goes on; use a release that knows it, or remove it. {error}"
        )
        return FailureReason(UNKNOWN_FIELD, message)
    assert isinstance(model, SegmentationModel)
    return model


def read_rollout(manifest: Mapping[str, Any]) -> SegmentationRollout:
    """Return a rollout's record without what this release does not know; raises `ValueError` if somebody broke it."""
    status = dict(manifest.get("status") or {})
    if status.get("phase") not in (None, *_PHASES):
        status["phase"] = RolloutPhase.PROGRESSING
    status["decisions"] = [_known_decision(each) for each in status.get("decisions") or ()]
    status["verdicts"] = [_known_verdict(each) for each in status.get("verdicts") or ()]
    plain = {**_head(manifest), "spec": manifest.get("spec") or {}, "status": status}
    return read_tolerantly(SegmentationRollout, plain, repair=False)[0]


def _known_decision(decision: Any) -> Any:
    if not isinstance(decision, Mapping) or decision.get("phase") in _PHASES:
        return decision
    return {**decision, "phase": RolloutPhase.PROGRESSING}


def _known_verdict(verdict: Any) -> Any:
    if not isinstance(verdict, Mapping) or verdict.get("outcome") in _OUTCOMES:
        return verdict
    return {**verdict, "outcome": "Undecided"}


def _head(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells an object apart; the rest of its metadata belongs to the API server."""
    name = {"name": manifest["metadata"]["name"]}
    return {**{key: manifest[key] for key in ("apiVersion", "kind") if key in manifest}, "metadata": name}


def _with_known_words(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a status whose words are all known: for those of a newer release, the safest neighbour."""
    status = dict(plain)
    status["conditions"] = [
        {**each, "status": "Unknown"} if each.get("status") not in tuple(ConditionStatus) else each
        for each in status.get("conditions") or ()
    ]
    roles = dict(status.get("roles") or {})
    candidate = roles.get("candidate")
    if candidate and candidate.get("state") not in tuple(CandidateState):
        state = CandidateState.PENDING if candidate.get("group") else CandidateState.FAILED
        status["roles"] = roles = {**roles, "candidate": {**candidate, "state": state}}
    rollout = status.get("rollout")
    if rollout and rollout.get("phase") not in _PHASES:
        status["rollout"] = {**rollout, "phase": _phase_by_roles(rollout, roles)}
    return status


def _phase_by_roles(rollout: Mapping[str, Any], roles: Mapping[str, Any]) -> RolloutPhase:
    """Return the phase that the roles tell: one in which the weights stay as they are."""
    revision, candidate = rollout.get("revision"), roles.get("candidate") or {}
    if candidate.get("revision") == revision:
        if candidate.get("state") == CandidateState.FAILED:
            return RolloutPhase.ROLLED_BACK
        return RolloutPhase.PROGRESSING if rollout.get("weight") else RolloutPhase.GOLDEN
    if (roles.get("stable") or {}).get("revision") == revision:
        return RolloutPhase.BAKING if roles.get("previous") else RolloutPhase.SUCCEEDED
    return RolloutPhase.CANCELLED
