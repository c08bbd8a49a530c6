"""The port to a Kubernetes API server: the requests that the operator makes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from typing import Protocol

from segserve_common.api_errors import ApiError
from segserve_common.kube.kinds import Json, Kind


class NotLeaderError(ApiError):
    """The write was refused here, before it was sent: this process does not hold the operator's lease."""


async def attempt_all(calls: Iterable[Awaitable[object]]) -> None:
    """Await independent calls one after the other, and raise the first `ApiError` after the last."""
    first: ApiError | None = None
    for call in calls:
        try:
            await call
        except ApiError as error:
            first = first or error
    if first is not None:
        raise first


class Api(Protocol):
    """The requests of the operator. Each ends within a bounded time, and raises an `ApiError` if it fails.

    Objects are JSON values as the server sends them, without `managedFields`; the items of a list also have
    `apiVersion` and `kind`. A `metadata.resourceVersion` or `metadata.uid` in a request is a precondition:
    `ConflictError` if the object has another now. Only a uid keeps `apply` from creating a deleted object again, and
    only a resourceVersion keeps a status from being written to another object of the same name.
    """

    async def has(self, kind: Kind) -> bool:
        """Return whether the server serves this kind."""

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Json]:
        """Return all objects of a kind with these labels; of all namespaces if `namespace` is None."""

    def each(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> AsyncIterator[Json]:
        """Yield the objects that `list` returns, a page at a time."""

    async def versions(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> dict[tuple[str, str], str]:
        """Return the resourceVersion of each object by (namespace, name)."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """Return one object."""

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Create an object; `ConflictError` if there is one of that name."""

    async def apply(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Apply a manifest by server-side apply, and return the object."""

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        """Merge a patch into an object, or into its status, and return it."""

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> bool:
        """Delete an object, and in the background what it owns; an object of another uid is left alone.

        Return whether it is still there, until its finalizers have done their work or its grace period is over.
        """
