"""An `Api` that stores the result of each write in the view, so that the next pass never reads an older state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from segserve_operator.adapters.kube.view import selector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import View


@dataclass(frozen=True, slots=True)
class WriteThroughApi:
    """Implements `Api`: forwards every call, and stores the object that a write returns in the view."""

    api: Api
    view: View

    async def has(self, kind: Kind) -> bool:
        """Return whether the server serves a kind."""
        return await self.api.has(kind)

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Json]:
        """Return all objects of a kind with these labels."""
        return await self.api.list(kind, namespace, labels)

    def each(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> AsyncIterator[Json]:
        """Yield all objects of a kind with these labels."""
        return self.api.each(kind, namespace, labels)

    async def versions(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> dict[tuple[str, str], str]:
        """Return the resourceVersion of each object."""
        return await self.api.versions(kind, namespace, labels)

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """Return one object."""
        return await self.api.get(kind, namespace, name)

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Create an object."""
        return self._store(kind, await self.api.create(kind, namespace, manifest))

    async def apply(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Apply a manifest by server-side apply."""
        return self._store(kind, await self.api.apply(kind, namespace, manifest))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        """Merge a patch into an object, or into its status."""
        return self._store(kind, await self.api.patch(kind, namespace, name, patch, status=status))

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> None:
        """Delete an object; the view shows it as terminating until the watch reports its end."""
        await self.api.delete(kind, namespace, name, uid=uid)
        item = self.view.get(kind, namespace, name) if kind in self.view.kinds else None
        if item is not None and (uid is None or item["metadata"]["uid"] == uid):
            item["metadata"].setdefault("deletionTimestamp", datetime.now(UTC).isoformat())

    def _store(self, kind: Kind, item: Json) -> Json:
        labels = item["metadata"].get("labels") or {}
        # The view holds only what the watches select; another object would never be removed from it.
        if kind in self.view.kinds and selector(kind).items() <= labels.items():
            self.view.take(kind, item)
        return item
