"""Waiting for what a platform makes of a wish: a goal judges each look at a resource, whoever does the looking."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from segserve.platforms.errors import NotFoundError, NotServingError, WaitTimeoutError
from segserve.platforms.port import MODEL
from segserve.platforms.progress import progress

if TYPE_CHECKING:
    from segserve.platforms.port import Json, Platform


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
        state = progress(manifest)
        if state.failed:
            raise NotServingError(f"{self.name}: {state.text}", model=self.name)
        return state.serves

    def late(self, manifest: Json | None, timeout: str) -> WaitTimeoutError:
        """Say what the conditions say."""
        said = "it is gone" if manifest is None else progress(manifest).text
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


def wait_for(here: Platform, goal: Goal, deadline_s: float, timeout: str) -> Json | None:
    """Return the resource as soon as it is as wanted.

    `deadline_s` is of `time.monotonic`, `timeout` the whole time in the caller's words. Raises what the goal raises,
    and `WaitTimeoutError`.
    """
    for manifest in here.states(goal.kind, goal.name):
        if goal.reached(manifest):
            return manifest
        if time.monotonic() > deadline_s:
            raise goal.late(manifest, timeout)
    raise AssertionError("states have no end")


def wait_serving(here: Platform, name: str, deadline_s: float, timeout: str) -> str:
    """Return what a model says once its newest spec serves; raises as `wait_for` does, and for an unknown one."""
    here.model(name)
    manifest = wait_for(here, Serving(name), deadline_s, timeout)
    assert manifest is not None, "what serves is there"
    return progress(manifest).text
