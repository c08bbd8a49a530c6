"""Actions of a user on a rollout: an annotation with the revision, and its outcome."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from segserve_operator.api.rollout_policy import RolloutPolicy, gate_name
from segserve_operator.api.segmentation_model import SegmentationModel, SegmentationModelStatus
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.observed import ModelStatus
from segserve_operator.core.world.requests import PREFIX, VERBS, RolloutRequest, promotes_judged, refusal
from segserve_operator.mapping.statuses import from_api
from segserve_platform.platforms.errors import ConflictError, NotFoundError, WaitTimeoutError
from segserve_platform.platforms.manifests import revision_of
from segserve_platform.platforms.port import MODEL, Json, ParsedResource, Platform
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.rollouts.rollout_view import is_written, record_of
from segserve_platform.platforms.waiting import wait_for

SKIP_GATE: Final = "skip-gate"
TOKEN_BYTES: Final = 3
USER_LENGTH: Final = 100
_ODD: Final = re.compile(r"[^\w.:@+-]")


def run_action(platform: Platform, name: str, verb: str, *, gate: str = "", timeout_s: float) -> str:
    """Request an action on a model's rollout, and return the outcome.

    Raises `ConflictError` if the action is not possible, and `WaitTimeoutError` if it was not handled in time; the
    request then stays in place.
    """
    goal = request_action(platform, name, verb, gate)
    if timeout_s <= 0:
        return f"requested: {PREFIX}{verb}: {goal.request.value}"
    model = wait_for(platform, goal, time.monotonic() + timeout_s, f"{timeout_s:g} s")
    assert model is not None, "`reached` raises for a deleted model"
    return outcome(platform, model, goal.request)


def request_action(platform: Platform, name: str, verb: str, gate: str = "") -> Handled:
    """Write the request for an action and return the goal to wait for.

    Raises `ConflictError` if the action is not possible now.
    """
    model = platform.model(name)
    status = _status(model)
    request, former = _request(model, verb, gate, platform.user()), status.rollout
    restarts = verb == "retry" or promotes_judged(request, status.roles)
    platform.annotate(MODEL, name, {PREFIX + verb: request.value})
    return Handled(name, request, former.rollout if former is not None else "", restarts)


@dataclass(frozen=True, slots=True)
class Handled:
    """A request was handled by the platform; if it `restarts`, another rollout than `former` has begun, or none can."""

    name: str
    request: RolloutRequest
    former: str = ""
    restarts: bool = False
    kind: str = MODEL

    def reached(self, manifest: Json | None) -> bool:
        """Look for the request among the handled ones, and for the rollout that it starts."""
        if manifest is None:
            raise NotFoundError(f"{self.name} was deleted", model=self.name)
        if self.request.text not in ((manifest.get("status") or {}).get("handledAnnotations") or ()):
            return False
        return not self.restarts or self._has_retried(manifest)

    def _has_retried(self, manifest: Json) -> bool:
        status = _status(manifest)
        candidate, rollout = status.roles.candidate, status.rollout
        if candidate is None or candidate.failure is not None or not manifest["spec"].get("rollout"):
            return True  # it serves already, failed again, or is promoted without a rollout
        return rollout is not None and (rollout.rollout != self.former or not rollout.ended)

    def late(self, manifest: Json | None, timeout: str) -> WaitTimeoutError:
        """Return the error, which says that the request stays in place."""
        annotation = f"{PREFIX}{self.request.verb}: {self.request.value}"
        return WaitTimeoutError(
            f"{self.name}: the request was not handled within {timeout} and stays in place ({annotation}); "
            "check the platform with `segserve doctor`",
            model=self.name,
        )


def ignored_annotations(platform: Platform, resource: ParsedResource, applied: Mapping[str, Json]) -> Iterator[str]:
    """Yield for each request by annotation in a model's file why the platform would ignore it as things are now.

    `applied` are all models as they will be, by name.
    """
    model, annotations = resource.resource, resource.resource.metadata.annotations
    if not isinstance(model, SegmentationModel):
        return
    stored = platform.find(MODEL, model.metadata.name)
    status, revision = _status(stored or {}), revision_of(resource.complete(), applied)
    for verb in VERBS:
        request = RolloutRequest(verb, annotations.get(PREFIX + verb, ""))
        # Applying the file may start the rollout of its revision; what was handled stays in the file.
        if not request.value or request.text in status.handled or request.revision == revision:
            continue
        gates = tuple(gate_name(gate) for gate in (model.spec.rollout or RolloutPolicy()).gates)
        if (refused := refusal(request, status.rollout, status.roles, gates)) is not None:
            yield f"the annotation {PREFIX}{verb}: {request.value} is ignored: {refused}"


def possible_actions(model: Json) -> list[str]:
    """Return the verbs that `run_action` would request for a model as it is now, those about a gate left out."""
    return [verb for verb in VERBS if verb != SKIP_GATE and _is_possible(model, verb)]


def skippable_gates(model: Json) -> list[str]:
    """Return the gates that `run_action` would request to skip for a model as it is now."""
    return [gate for gate in _gates(model) if _is_possible(model, SKIP_GATE, gate)]


def _is_possible(model: Json, verb: str, gate: str = "") -> bool:
    try:
        _request(model, verb, gate, "")
    except ConflictError:
        return False
    return True


def _request(model: Json, verb: str, gate: str, user: str) -> RolloutRequest:
    """Return the request with the revision it applies to; raises `ConflictError` if the action is not possible now."""
    status, name = _status(model), model["metadata"]["name"]
    revision = _revision(status, verb)
    about = f"{gate}@{revision}" if gate else revision
    by = f"{_ODD.sub('_', user)[:USER_LENGTH]}/" if user else ""
    request = RolloutRequest(verb, f"{about}@{by}{secrets.token_hex(TOKEN_BYTES)}")
    refused = refusal(request, status.rollout, status.roles, _gates(model)) or _pointless(request, status.rollout)
    if refused is not None:
        raise ConflictError(f"{name}: {refused}{'' if revision else _instead(model, status.rollout)}")
    return request


def _status(model: Json) -> ModelStatus:
    return from_api(SegmentationModelStatus.model_validate(model.get("status") or {}))


def _revision(status: ModelStatus, verb: str) -> str:
    """Return the revision that a verb applies to: the stable one, the failed one, or the candidate."""
    roles, standing = status.roles, status.rollout
    match verb:
        case "rollback":
            return roles.stable.revision if roles.stable is not None else ""
        case "retry":
            failed = roles.candidate is not None and roles.candidate.failure is not None
            return roles.candidate.revision if roles.candidate is not None and failed else ""
        case "promote" if roles.candidate is not None and roles.candidate.judged:
            return roles.candidate.revision
        case _:
            return standing.revision if standing is not None and not standing.ended else ""


def _instead(model: Json, standing: RolloutState | None) -> str:
    """Return the actual state, for a request without a revision."""
    if standing is not None:
        return f"; that of {standing.revision} is {standing.phase.label}"
    if not model["spec"].get("rollout"):
        return "; without `spec.rollout`, a revision is promoted as soon as it is ready"
    return ""


def _pointless(request: RolloutRequest, standing: RolloutState | None) -> str | None:
    if standing is None:
        return None
    if request.verb == "pause" and standing.paused:
        return f"pause: {standing.revision} is paused already"
    if request.verb == "skip-gate" and request.gate in standing.skipped:
        return f"skip-gate: {request.gate} is skipped already"
    return None


def _gates(model: Json) -> tuple[str, ...]:
    """Return the names of the gates that judge a model's candidates, as verdicts use them."""
    policy = RolloutPolicy.model_validate(model["spec"].get("rollout") or {})
    return tuple(gate_name(gate) for gate in policy.gates)


def outcome(platform: Platform, model: Json, request: RolloutRequest) -> str:
    """Return the outcome of a handled request; raises `ConflictError` if it came too late."""
    name, standing = model["metadata"]["name"], _status(model).rollout
    if request.verb == "retry" and (failure := _failure(model)):
        raise ConflictError(f"{name}: retry: {request.revision} has failed again, or the retry was refused: {failure}")
    present = Present.of(model)
    if request.verb == "rollback":
        if request.revision == present.revisions.get("stable"):
            raise ConflictError(f"{name}: {present.text}; rollback came too late or was refused")
        return f"{name}: {present.text}; {request.revision} was left"
    if standing is None:
        return f"{name}: {request.verb} of {request.revision} was handled"
    state = f"{standing.revision} is {standing.phase.label} at {present.share_of(standing.revision)} %"
    state += ", paused" if standing.paused else ""
    manifest = platform.rollout(standing.rollout)
    decisions = record_of(manifest).decisions if manifest is not None and is_written(manifest) else ()
    last = decisions[-1] if decisions and decisions[-1].sequence >= standing.sequence else None
    reason, message = (last.reason, last.message) if last is not None else (standing.reason, standing.message)
    cause = ": ".join(part for part in (reason, message) if part)
    begun = f"rollout {standing.rollout}: " if request.verb == "retry" else ""
    text = f"{name}: {begun}{state}" + (f" ({cause})" if cause else "")
    if not _is_met(request, standing):
        raise ConflictError(f"{text}; {request.verb} came too late or was refused")
    return text


def _failure(model: Json) -> str:
    """Return why the candidate failed, or an empty string."""
    candidate = _status(model).roles.candidate
    if candidate is None or candidate.failure is None:
        return ""
    return f"{candidate.failure.reason}: {candidate.failure.message}"


def _is_met(request: RolloutRequest, standing: RolloutState) -> bool:
    """Return whether a rollout is in the state that a handled request specified; True for actions that take longer."""
    match request.verb:
        case "promote":
            # What was only judged starts anew.
            return standing.phase in (Phase.PENDING, Phase.GOLDEN, Phase.BAKING, Phase.SUCCEEDED)
        case "abort":
            return standing.phase is Phase.ROLLED_BACK
        case "pause" | "resume":
            return standing.paused is (request.verb == "pause")
        case "skip-gate":
            return request.gate in standing.skipped
        case _:
            return True
