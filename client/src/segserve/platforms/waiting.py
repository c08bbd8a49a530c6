"""Waiting for a goal: the readiness of a model, or the end of a resource."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from segserve.platforms.errors import NotFoundError, NotServingError, WaitTimeoutError
from segserve.platforms.port import MODEL, Json, Platform

# A server that is being started again is not the change's fault, nor is a cluster's room or its registry.
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
        "Unschedulable",
    }
)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the newest spec serves, can no longer come to serve by itself, or is on its way."""

    serves: bool
    failed: bool
    text: str


def readiness(manifest: Mapping[str, Any]) -> Readiness:
    """Return how far the newest spec of a model has come."""
    status = manifest.get("status") or {}
    if status.get("observedGeneration") != manifest["metadata"]["generation"]:
        return Readiness(serves=False, failed=False, text="waiting for the platform")
    degraded = condition(manifest, "Degraded")
    if degraded["status"] == "True" and degraded["reason"] not in PASSING_REASONS:
        return Readiness(serves=False, failed=True, text=_said(degraded))
    ready, moving = condition(manifest, "Ready"), condition(manifest, "Progressing")
    # While callers are being sent to the newest revision, the one before it still answers some.
    if ready["status"] == "True" and ready["reason"] != "Switching" and moving["status"] == "False":
        return Readiness(serves=True, failed=False, text=ready.get("message", ""))
    newest = next((said for said in (degraded, moving) if said["status"] == "True"), ready)
    return Readiness(serves=False, failed=False, text=_said(newest))


def _said(condition: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, (condition["reason"], condition.get("message"))))


def condition(manifest: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition of a resource; one that was never observed is Unknown."""
    conditions = (manifest.get("status") or {}).get("conditions", [])
    unknown = {"type": kind, "status": "Unknown", "reason": "Waiting"}
    return next((found for found in conditions if found["type"] == kind), unknown)


class Goal(Protocol):
    """What is waited for of one resource."""

    @property
    def kind(self) -> str:
        """The resource's kind."""
        ...

    @property
    def name(self) -> str:
        """The resource's name."""
        ...

    def reached(self, manifest: Json | None) -> bool:
        """Return whether a resource (None: it is gone) is as wanted; raises where it cannot come to that by itself."""
        ...

    def late(self, manifest: Json | None, timeout: str) -> WaitTimeoutError:
        """Return the error of one who has waited so long in vain: it says what is still missing."""
        ...


@dataclass(frozen=True, slots=True)
class Serving:
    """A model's newest spec serves. What cannot come to serve raises `NotServingError`, at once."""

    name: str
    kind: str = MODEL

    def reached(self, manifest: Json | None) -> bool:
        """Judge the conditions."""
        if manifest is None:
            raise NotFoundError(f"there is no model {self.name!r} (any more)", model=self.name)
        state = readiness(manifest)
        if state.failed:
            raise NotServingError(f"{self.name}: {state.text}", model=self.name)
        return state.serves

    def late(self, manifest: Json | None, timeout: str) -> WaitTimeoutError:
        """Say what the conditions say."""
        said = "it is gone" if manifest is None else readiness(manifest).text
        return WaitTimeoutError(f"{self.name} is not ready after {timeout}: {said}", model=self.name)


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing is left of a resource."""

    kind: str
    name: str

    def reached(self, manifest: Json | None) -> bool:
        """Judge whether it is there."""
        return manifest is None

    def late(self, manifest: Json | None, timeout: str) -> WaitTimeoutError:
        """Say who holds it."""
        finalizers = (manifest or {}).get("metadata", {}).get("finalizers")
        holds = f"`segserve describe {self.name}` says what holds it"
        if finalizers:
            who = ", ".join(finalizers)
            holds = f"it waits for who takes away {who}: `segserve doctor` says whether an operator runs"
        return WaitTimeoutError(f"{self.name} is not gone after {timeout}; {holds}")


def wait_for(platform: Platform, goal: Goal, deadline_s: float, timeout: str) -> Json | None:
    """Return the resource as soon as it is as wanted.

    `deadline_s` is of `time.monotonic`, `timeout` the whole time in the caller's words. Raises what the goal raises,
    and `WaitTimeoutError`.
    """
    for manifest in platform.states(goal.kind, goal.name):
        if goal.reached(manifest):
            return manifest
        if time.monotonic() > deadline_s:
            raise goal.late(manifest, timeout)
    raise AssertionError("states have no end")


def wait_serving(platform: Platform, name: str, deadline_s: float, timeout: str) -> str:
    """Return what a model says once its newest spec serves; raises as `wait_for` does, and for an unknown one."""
    platform.model(name)
    manifest = wait_for(platform, Serving(name), deadline_s, timeout)
    assert manifest is not None, "what serves is there"
    return readiness(manifest).text
