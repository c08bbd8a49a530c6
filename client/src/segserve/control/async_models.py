"""Models and pools, for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, overload

from segserve.control.models import WAIT_S, ModelList, Models, PoolList, Pools, Target
from segserve.control.typed import goal_of, typed
from segserve.control.waiting import wait_for
from segserve_operator.api.segmentation_model import SegmentationModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from segserve.platforms.manifests import Source
    from segserve.platforms.port import Platform
    from segserve_operator.api.triton_pool import TritonPool


class AsyncModels:
    """`Models` for asyncio; see there."""

    def __init__(self, platform: Callable[[], Platform]) -> None:
        self._platform = platform
        self._models = Models(platform)

    async def list(self) -> ModelList:
        """Return all models by name."""
        return await asyncio.to_thread(self._models.list)

    async def get(self, name: str) -> SegmentationModel:
        """Return a model with its status; raises `NotFoundError`."""
        return await asyncio.to_thread(self._models.get, name)

    async def apply(self, source: Source, *, force: bool = False) -> SegmentationModel:
        """Create or change a model, as `Models.apply` does."""
        return await asyncio.to_thread(self._models.apply, source, force=force)

    async def apply_all(self, source: Source, *, force: bool = False) -> ModelList:
        """Create or change all resources of a file or text, as `Models.apply_all` does."""
        return await asyncio.to_thread(self._models.apply_all, source, force=force)

    async def delete(self, name: str) -> None:
        """Ask for a model's deletion; raises `NotFoundError`."""
        await asyncio.to_thread(self._models.delete, name)

    @overload
    async def wait(
        self, name: str, *, for_: Literal["Ready"] = "Ready", timeout_s: float = WAIT_S
    ) -> SegmentationModel: ...
    @overload
    async def wait(self, name: str, *, for_: Literal["delete"], timeout_s: float = WAIT_S) -> None: ...
    async def wait(self, name: str, *, for_: Target = "Ready", timeout_s: float = WAIT_S) -> SegmentationModel | None:
        """Return the model once it serves, or None once nothing is left of it, as `Models.wait` does."""
        here = await asyncio.to_thread(self._platform)
        goal = await asyncio.to_thread(goal_of, here, name, for_)
        manifest = await wait_for(here, goal, timeout_s)
        return None if manifest is None else typed(manifest, SegmentationModel)


class AsyncPools:
    """`Pools` for asyncio; see there."""

    def __init__(self, platform: Callable[[], Platform]) -> None:
        self._pools = Pools(platform)

    async def list(self) -> PoolList:
        """Return all pools by name."""
        return await asyncio.to_thread(self._pools.list)

    async def get(self, name: str) -> TritonPool:
        """Return a pool with its status; raises `NotFoundError`."""
        return await asyncio.to_thread(self._pools.get, name)

    async def apply(self, source: Source, *, force: bool = False) -> TritonPool:
        """Create or change a pool, as `Models.apply` does a model."""
        return await asyncio.to_thread(self._pools.apply, source, force=force)

    async def delete(self, name: str) -> None:
        """Ask for a pool's deletion; this machine's stays until `segserve down`. Raises `NotFoundError`."""
        await asyncio.to_thread(self._pools.delete, name)
