"""Waiting for a goal: the readiness of a model, or the end of a resource."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol, TypeAlias

from segserve_platform.platforms.advice import advice
from segserve_platform.platforms.errors import NotFoundError, NotServingError, WaitTimeoutError
from segserve_platform.platforms.port import MODEL, Json, Platform

# A restarting server, a full cluster or its registry is not the fault of the change.
PASSING_REASONS: Final = frozenset(
    {
        "NoServer",
        "ContainerCannotRun",
        "CrashLoopBackOff",
        "CreateContainerError",
        "Error",
        "ErrImagePull",
        "FailedCreate",
        "ImagePullBackOff",
        "QuotaExceeded",
        "ServerFailed",
        "Unschedulable",
    }
)


State: TypeAlias = Literal["Ready", "Starting", "Changing", "Not ready", "Degraded", "Failed", "Stopped"]
"""Degraded: its newest spec cannot serve without a change, and a former one does; Failed: nothing serves."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """The state of a model's newest spec, why, and what to do next: the same in every command and on the page."""

    state: State
    text: str
    advice: str = ""

    @property
    def serves(self) -> bool:
        """Whether the newest spec serves."""
        return self.state == "Ready"

    @property
    def failed(self) -> bool:
        """Whether the newest spec cannot serve without a change."""
        return self.state in ("Degraded", "Failed")

    @property
    def answers(self) -> bool:
        """Whether callers get answers, of a former revision at least."""
        return self.state in ("Ready", "Changing", "Degraded")

    @property
    def problem(self) -> str:
        """Why it failed and what to do, in one sentence; empty if it has not failed."""
        return "; ".join(filter(None, (self.text, self.advice))) if self.failed else ""


def age(time: str) -> str:
    """Return the time since an RFC 3339 time in kubectl's form: `45s`, `12m`, `3h`, `2d`."""
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def readiness(manifest: Mapping[str, Any]) -> Readiness:
    """Return the state of a model's newest spec, from its conditions."""
    degraded, stalled = condition(manifest, "Degraded"), condition(manifest, "Stalled")
    ready, moving = condition(manifest, "Ready"), condition(manifest, "Progressing")
    answers = ready["status"] == "True"
    never = "stable" not in ((manifest.get("status") or {}).get("roles") or {})
    starting = ready["status"] == "False" and ready["reason"] != "Deleting" and never
    waits: State = "Changing" if answers else "Starting" if starting else "Not ready"
    if not is_seen(manifest):
        return Readiness(waits, "waiting for the platform")
    needs_change = degraded["status"] == "True" and degraded["reason"] not in PASSING_REASONS
    if stalled["status"] == "True" or needs_change:
        found = stalled if stalled["status"] == "True" else degraded
        return Readiness("Degraded" if answers else "Failed", _said(found), advice(found, manifest))
    # During the switch to the newest revision, the previous one still answers some requests.
    if answers and ready["reason"] != "Switching" and moving["status"] == "False":
        return Readiness("Ready", (moving if moving["reason"] == "Judged" else ready).get("message", ""))
    newest = next((said for said in (degraded, moving) if said["status"] == "True"), ready)
    return Readiness(waits, _said(newest))


def is_seen(manifest: Mapping[str, Any]) -> bool:
    """Return whether the platform has looked at a resource's newest spec: a condition is about it.

    The status's own generation lags until the spec serves.
    """
    status, generation = manifest.get("status") or {}, manifest["metadata"].get("generation")
    conditions = status.get("conditions") or ()
    return generation in (status.get("observedGeneration"), *(each.get("observedGeneration") for each in conditions))


def name_advice(name: str, manifests: Iterable[Mapping[str, Any]]) -> str:
    """Return what to add to the error of a name that is not served, from all models; empty without models."""
    from segserve_operator.api.checks import did_you_mean

    models = {manifest["metadata"]["name"]: manifest for manifest in manifests}
    if name in models:
        state = readiness(models[name])
        return "" if state.serves else f": the model exists, but does not serve: {state.text}"
    return f"{did_you_mean(name, models)}; there are: {', '.join(models)}" if models else ""


def _said(condition: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, (condition["reason"], condition.get("message"))))


def condition(manifest: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition of a resource; a missing one is Unknown."""
    conditions = (manifest.get("status") or {}).get("conditions", [])
    unknown = {"type": kind, "status": "Unknown", "reason": "Waiting"}
    return next((found for found in conditions if found["type"] == kind), unknown)


class Goal(Protocol):
    """A state to wait for of one resource."""

    @property
    def kind(self) -> str:
        """The resource's kind."""

    @property
    def name(self) -> str:
        """The resource's name."""

    def reached(self, manifest: Json | None) -> bool:
        """Return whether a resource (None if it does not exist) is in the state; raises if it cannot get there by
        itself.
        """

    def late(self, manifest: Json | None, timeout: str) -> WaitTimeoutError:
        """Return the error of a timeout, which says what is still missing."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A model's newest spec serves. Raises `NotServingError` as soon as it cannot."""

    name: str
    kind: str = MODEL

    def reached(self, manifest: Json | None) -> bool:
        """Check the conditions."""
        if manifest is None:
            raise NotFoundError(f"model {self.name!r} does not exist (any more)", model=self.name)
        state = readiness(manifest)
        if state.failed:
            raise NotServingError(f"{self.name}: {state.problem}", model=self.name)
        return state.serves

    def late(self, manifest: Json | None, timeout: str) -> WaitTimeoutError:
        """Return the error with the current conditions."""
        state = "it was deleted" if manifest is None else readiness(manifest).text
        return WaitTimeoutError(f"{self.name} is not ready after {timeout}: {state}", model=self.name)


@dataclass(frozen=True, slots=True)
class Gone:
    """A resource no longer exists."""

    kind: str
    name: str

    def reached(self, manifest: Json | None) -> bool:
        """Check whether it exists."""
        return manifest is None

    def late(self, manifest: Json | None, timeout: str) -> WaitTimeoutError:
        """Return the error with the finalizers that block the deletion."""
        finalizers = (manifest or {}).get("metadata", {}).get("finalizers")
        cause = f"see `segserve describe {self.name}`"
        if finalizers:
            names = ", ".join(finalizers)
            cause = f"it waits for the removal of the finalizer {names}: check the operator with `segserve doctor`"
        return WaitTimeoutError(f"{self.name} still exists after {timeout}; {cause}")


def wait_for(platform: Platform, goal: Goal, deadline_s: float, timeout: str) -> Json | None:
    """Return the resource once it reaches the goal.

    `deadline_s` is in terms of `time.monotonic`; `timeout` is the total time as text for the error. Raises the errors
    of the goal, and `WaitTimeoutError`.
    """
    states = platform.states(goal.kind, goal.name)
    while not goal.reached(manifest := next(states)):
        if time.monotonic() > deadline_s:
            raise overdue(platform, goal, manifest, timeout)
    return manifest


def overdue(platform: Platform, goal: Goal, manifest: Json | None, timeout: str) -> WaitTimeoutError:
    """Return the error of a wait that is over, with the last line of the log of what does not go on."""
    late = goal.late(manifest, timeout)
    words = platform.last_words(goal.name) if goal.kind == MODEL and manifest is not None else ""
    return WaitTimeoutError(f"{late.message}{words}", model=late.model)


def wait_serving(platform: Platform, name: str, deadline_s: float, timeout: str) -> str:
    """Return the message of a model once its newest spec serves; raises as `wait_for` does, and `NotFoundError`."""
    platform.model(name)
    manifest = wait_for(platform, Serving(name), deadline_s, timeout)
    assert manifest is not None, "what serves is there"
    return readiness(manifest).text
