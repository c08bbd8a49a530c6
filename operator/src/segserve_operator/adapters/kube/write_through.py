"""An `Api` that stores the result of each write in the view, so that the next pass never reads an older state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from segserve_common.api_errors import ApiError, NotFoundError
from segserve_operator.adapters.kube.view import selector

if TYPE_CHECKING:
    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import View


class WriteThroughApi:
    """Implements `Api`: forwards every call, and stores the object that a write returns in the view.

    What a write shows to be gone leaves the view at once: a watch that began after its end never reports it.
    """

    def __init__(self, api: Api, view: View) -> None:
        self.api, self.view = api, view
        self.has, self.list, self.each = api.has, api.list, api.each
        self.versions, self.get = api.versions, api.get

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Create an object."""
        return self._store(kind, await self.api.create(kind, namespace, manifest))

    async def apply(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Apply a manifest by server-side apply."""
        return self._store(kind, await self.api.apply(kind, namespace, manifest))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        """Merge a patch into an object, or into its status."""
        try:
            return self._store(kind, await self.api.patch(kind, namespace, name, patch, status=status))
        except NotFoundError:
            await self._drop_missing(kind, namespace, name)
            raise

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> bool:
        """Delete an object; the view shows one that is still there as terminating until the watch reports its end."""
        remains = await self.api.delete(kind, namespace, name, uid=uid)
        item = self._known(kind, namespace, name)
        if item is not None and (uid is None or item["metadata"]["uid"] == uid):
            if remains:
                item["metadata"].setdefault("deletionTimestamp", datetime.now(UTC).isoformat())
            else:
                self.view.drop(kind, item)
        return remains

    async def _drop_missing(self, kind: Kind, namespace: str, name: str) -> None:
        item = self._known(kind, namespace, name)
        if item is None:
            return
        try:
            # A webhook, a proxy or a missing subresource may also answer 404, and what is dropped is served no longer.
            await self.api.get(kind, namespace, name)
        except NotFoundError:
            self.view.drop(kind, item)
        except ApiError:
            return  # the next write or audit shows it

    def _known(self, kind: Kind, namespace: str, name: str) -> Json | None:
        return self.view.get(kind, namespace, name) if kind in self.view.kinds else None

    def _store(self, kind: Kind, item: Json) -> Json:
        labels = item["metadata"].get("labels") or {}
        # The view holds only what the watches select; another object would never be removed from it.
        if kind in self.view.kinds and selector(kind).items() <= labels.items():
            metadata = item["metadata"]
            waits = metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds")
            # The last state of an object, whose last finalizer the write has taken off.
            if "deletionTimestamp" in metadata and not waits:
                self.view.drop(kind, item)
            else:
                self.view.take(kind, item)
        return item
