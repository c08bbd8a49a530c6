"""Models and pools as typed resources: `client.models` and `client.pools`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, overload

from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.api.triton_pool import TritonPool
from segserve_platform.control.typed import apply_all, apply_one, goal_of, in_thread, typed, wait_for_async
from segserve_platform.platforms.manifests import Source
from segserve_platform.platforms.port import MODEL, POOL, Platform
from segserve_platform.platforms.waiting import wait_for

ModelList: TypeAlias = list[SegmentationModel]
PoolList: TypeAlias = list[TritonPool]
Target: TypeAlias = Literal["Ready", "delete"]
"""The state of a model to wait for: its newest spec serves, or it is deleted."""

WAIT_S: Final = 120.0


class Models:
    """The SegmentationModels of a platform: `client.models`."""

    def __init__(self, platform: Callable[[], Platform]) -> None:
        self._platform = platform

    def list(self) -> ModelList:
        """Return all models, sorted by name."""
        return [typed(manifest, SegmentationModel) for manifest in self._platform().models()]

    def get(self, name: str) -> SegmentationModel:
        """Return a model with its status; raises `NotFoundError`."""
        return typed(self._platform().model(name), SegmentationModel)

    def apply(self, source: Source, *, force: bool = False) -> SegmentationModel:
        """Create or change a model and return it as stored; it serves later (see `wait`).

        `source` is a `SegmentationModel`, its JSON as a mapping, a path, or YAML text (a string with more than one
        line), with exactly one model. On this machine a relative artifact address is relative to its file, or else to
        the current folder; on a cluster, to the pool's artifact base. On a cluster, `force` takes over fields that
        another tool has set. Raises `InvalidResourceError` with each invalid field and its allowed values, and
        `ConflictError`.
        """
        return apply_one(self._platform(), source, SegmentationModel, force=force)

    def apply_all(self, source: Source, *, force: bool = False) -> ModelList:
        """Create or change all resources of a source, or none if one is invalid, and return the models.

        The source may also contain pools, and may be a folder: all its `*.yaml` and `*.yml`. Otherwise as `apply`.
        """
        return apply_all(self._platform(), source, force=force)

    def delete(self, name: str) -> None:
        """Request a model's deletion: its traffic ends first, then it is unloaded. Raises `NotFoundError`."""
        self._platform().delete(MODEL, name)

    @overload
    def wait(self, name: str, *, for_: Literal["Ready"] = "Ready", timeout_s: float = WAIT_S) -> SegmentationModel: ...
    @overload
    def wait(self, name: str, *, for_: Literal["delete"], timeout_s: float = WAIT_S) -> None: ...
    def wait(self, name: str, *, for_: Target = "Ready", timeout_s: float = WAIT_S) -> SegmentationModel | None:
        """Return the model once its newest spec serves all callers, or None once it is deleted.

        Raises `NotServingError` with the cause as soon as it cannot serve without a change, `NoPlatformError` if no
        platform runs, `NotFoundError`, and `WaitTimeoutError`.
        """
        platform, deadline_s = self._platform(), time.monotonic() + timeout_s
        manifest = wait_for(platform, goal_of(platform, name, for_), deadline_s, f"{timeout_s:g} s")
        return None if manifest is None else typed(manifest, SegmentationModel)


class Pools:
    """The TritonPools of a platform: `client.pools`. The single pool of this machine needs no resource."""

    def __init__(self, platform: Callable[[], Platform]) -> None:
        self._platform = platform

    def list(self) -> PoolList:
        """Return all pools, sorted by name."""
        return [typed(manifest, TritonPool) for manifest in self._platform().pools()]

    def get(self, name: str) -> TritonPool:
        """Return a pool with its status; raises `NotFoundError`."""
        return typed(self._platform().pool(name), TritonPool)

    def apply(self, source: Source, *, force: bool = False) -> TritonPool:
        """Create or change a pool, as `Models.apply` does a model."""
        return apply_one(self._platform(), source, TritonPool, force=force)

    def delete(self, name: str) -> None:
        """Request a pool's deletion; the pool of this machine stays until `segserve down`. Raises `NotFoundError`."""
        self._platform().delete(POOL, name)


class AsyncModels:
    """`Models` for asyncio; see there."""

    def __init__(self, platform: Callable[[], Platform]) -> None:
        self._platform = platform
        self.blocking = Models(platform)

    list = in_thread(Models.list)
    get = in_thread(Models.get)
    apply = in_thread(Models.apply)
    apply_all = in_thread(Models.apply_all)
    delete = in_thread(Models.delete)

    @overload
    async def wait(
        self, name: str, *, for_: Literal["Ready"] = "Ready", timeout_s: float = WAIT_S
    ) -> SegmentationModel: ...
    @overload
    async def wait(self, name: str, *, for_: Literal["delete"], timeout_s: float = WAIT_S) -> None: ...
    async def wait(self, name: str, *, for_: Target = "Ready", timeout_s: float = WAIT_S) -> SegmentationModel | None:
        """Return the model once it serves, or None once it is deleted, as `Models.wait` does."""
        platform = await asyncio.to_thread(self._platform)
        goal = await asyncio.to_thread(goal_of, platform, name, for_)
        manifest = await wait_for_async(platform, goal, timeout_s)
        return None if manifest is None else typed(manifest, SegmentationModel)


class AsyncPools:
    """`Pools` for asyncio; see there."""

    def __init__(self, platform: Callable[[], Platform]) -> None:
        self.blocking = Pools(platform)

    list = in_thread(Pools.list)
    get = in_thread(Pools.get)
    apply = in_thread(Pools.apply)
    delete = in_thread(Pools.delete)
