"""Conversion between platforms, which return JSON, and typed resources."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from segserve_common.errors import BadRequestError
from segserve_operator.api.loading import parse
from segserve_operator.api.meta import SpecError
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.api.segmentation_rollout import SegmentationRollout
from segserve_operator.api.triton_pool import TritonPool
from segserve_platform.platforms.errors import ControlError, InvalidResourceError, NoPlatformError, NotFoundError
from segserve_platform.platforms.manifests import Source, check_kinds, read
from segserve_platform.platforms.port import MODEL, Json, Platform
from segserve_platform.platforms.waiting import Goal, Gone, Serving, overdue

R = TypeVar("R", SegmentationModel, TritonPool, SegmentationRollout)
P = ParamSpec("P")
T = TypeVar("T")

LOOK_S: Final = 0.5
READ: Final[Mapping[str, Callable[[Platform, str], Json]]] = {
    SegmentationModel.__name__: lambda platform, name: platform.model(name),
    TritonPool.__name__: lambda platform, name: platform.pool(name),
}


def typed(manifest: Json, kind: type[R]) -> R:
    """Return a stored resource as its type; raises `ControlError` for one from another version of segserve."""
    title = f"{kind.__name__} {manifest.get('metadata', {}).get('name')!r}"
    try:
        resource: Any = parse({"apiVersion": "segserve.dev/v1alpha1", "kind": kind.__name__, **manifest}, title)
    except SpecError as error:
        raise ControlError(f"{error}; it may be from another version of segserve") from error
    assert isinstance(resource, kind), "the kind determines the type"
    return resource


def apply_one(platform: Platform, source: Source, kind: type[R], *, force: bool) -> R:
    """Apply the one resource of a source and return it as stored."""
    resources = read(source)
    kinds = [written.resource.kind for written in resources]
    if kinds != [kind.__name__]:
        raise InvalidResourceError(
            f"{resources[0].source}: expected one {kind.__name__}, got {', '.join(kinds)}; "
            "use `models.apply_all` for several resources"
        )
    platform.check_namespace(resources)
    platform.apply(resources, force=force)
    return typed(READ[kind.__name__](platform, resources[0].resource.metadata.name), kind)


def apply_all(platform: Platform, source: Source, *, force: bool) -> list[SegmentationModel]:
    """Apply all resources of a source and return the models as stored."""
    resources = read(source)
    check_kinds(resources)
    platform.check_namespace(resources)
    platform.apply(resources, force=force)
    models = (written.resource for written in resources if written.resource.kind == MODEL)
    return [typed(platform.model(each.metadata.name), SegmentationModel) for each in models]


def goal_of(platform: Platform, name: str, target: str) -> Goal:
    """Return the goal to wait for.

    Raises `NoPlatformError` if no platform runs, and `NotFoundError` for an unknown model that is to serve.
    """
    goals: dict[str, Goal] = {"Ready": Serving(name), "delete": Gone(MODEL, name)}
    if target not in goals:
        raise BadRequestError(f"for_ must be one of {', '.join(goals)}, got {target!r}")
    if target == "Ready":
        platform.model(name)
    check_runs(platform, name)
    return goals[target]


def check_runs(platform: Platform, name: str) -> None:
    """Raise `NoPlatformError` if no platform runs that could carry out a request for a model."""
    if not platform.runs():
        raise NoPlatformError(f"no platform is up on this machine to process {name}: start it with `segserve up`")


def record(platform: Platform, name: str) -> SegmentationRollout:
    """Return the record of a rollout; raises `NotFoundError`."""
    manifest = platform.rollout(name)
    if manifest is None:
        raise NotFoundError(f"no record of a rollout {name!r}; `client.rollouts.list()` returns all")
    return typed(manifest, SegmentationRollout)


async def wait_for_async(platform: Platform, goal: Goal, timeout_s: float) -> Json | None:
    """Return the resource once it reaches the goal; raises the errors of the goal, and `WaitTimeoutError`.

    Polls in threads, so that a cancelled task leaves nothing behind.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        manifest = await asyncio.to_thread(platform.find, goal.kind, goal.name)
        if goal.reached(manifest):
            return manifest
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise await asyncio.to_thread(overdue, platform, goal, manifest, f"{timeout_s:g} s")
        await asyncio.sleep(min(LOOK_S, left_s))


def in_thread(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return the method for asyncio, which runs the one of its object's attribute `blocking` in a thread."""

    @wraps(method)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self.blocking, *args, **kwargs)

    return call
