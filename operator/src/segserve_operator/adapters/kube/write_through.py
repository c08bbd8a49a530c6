"""An Api whose writes are seen in the view at once: the next pass never decides from what it has itself overwritten."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from segserve_operator.adapters.kube.view import selector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import View


@dataclass(frozen=True, slots=True)
class WriteThroughApi:
    """Passes every call on; what a write answers goes into the view."""

    api: Api
    view: View

    async def has(self, kind: Kind) -> bool:
        """Tell whether the server serves a kind."""
        return await self.api.has(kind)

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Json]:
        """Return all objects of a kind with these labels."""
        return await self.api.list(kind, namespace, labels)

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
        return self._seen(kind, await self.api.create(kind, namespace, manifest))

    async def apply(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Make an object have all that the manifest says."""
        return self._seen(kind, await self.api.apply(kind, namespace, manifest))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        """Merge a patch into an object, or into its status."""
        return self._seen(kind, await self.api.patch(kind, namespace, name, patch, status=status))

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> None:
        """Delete an object; until its end is seen it counts as one that is being deleted."""
        await self.api.delete(kind, namespace, name, uid=uid)
        known = self.view.get(kind, namespace, name) if kind in self.view.kinds else None
        if known is not None and (uid is None or known["metadata"]["uid"] == uid):
            known["metadata"].setdefault("deletionTimestamp", datetime.now(UTC).isoformat())

    def _seen(self, kind: Kind, found: Json) -> Json:
        labels = found["metadata"].get("labels") or {}
        if kind in self.view.kinds and selector(kind).items() <= labels.items():
            self.view.take(kind, found)
        return found
