"""Local copies of objects, kept up to date by watches."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Self

from segserve_common.kube.kinds import Kind
from segserve_common.kube.requests import Selector, WatchEvent
from segserve_common.kube.watch import DELETED, Reflector
from segserve_platform.platforms.cluster.context_client import ContextClient
from segserve_platform.platforms.errors import ControlError
from segserve_platform.platforms.port import Json


class Watcher:
    """Copies of the objects that `selectors` select, listed at the start of the block and watched until its end.

    While the server cannot be reached the last state stays, and `problem` says why.
    """

    def __init__(self, client: ContextClient, selectors: Sequence[Selector]) -> None:
        self._objects: dict[Kind, dict[str, Json]] = {}
        self._problems: dict[Kind, str] = {}
        self._changed = threading.Condition()
        self._changes = 0
        self._reflectors = [
            Reflector(
                client,
                selector,
                on_list=partial(self._replace, selector.kind),
                on_event=partial(self._update, selector.kind),
                on_error=partial(self._fail, selector.kind),
            )
            for selector in selectors
        ]

    def __enter__(self) -> Self:
        versions = [reflector.list() for reflector in self._reflectors]
        for reflector, version in zip(self._reflectors, versions, strict=True):
            # A thread that waits for a silent stream ends with the client, or with the process.
            reflector.start(version)
        return self

    def __exit__(self, *_: object) -> None:
        for reflector in self._reflectors:
            reflector.stop()

    def all(self, kind: Kind) -> list[Json]:
        """Return the objects of a kind by name."""
        with self._changed:
            return [item for _, item in sorted(self._objects.get(kind, {}).items())]

    @property
    def problem(self) -> str:
        """Why the objects may be out of date; empty if they are not."""
        with self._changed:
            return next(iter(self._problems.values()), "")

    def wait(self, since: int, timeout_s: float) -> int:
        """Return the number of changes so far, as soon as it differs from `since` or the time has passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != since, timeout_s)
            return self._changes

    def _replace(self, kind: Kind, items: Sequence[Json]) -> None:
        with self._changed:
            self._objects[kind] = {item["metadata"]["name"]: item for item in items}
            self._notify(kind)

    def _update(self, kind: Kind, event: WatchEvent) -> None:
        name = event.object["metadata"]["name"]
        with self._changed:
            if event.type == DELETED:
                self._objects[kind].pop(name, None)
            else:
                self._objects[kind][name] = event.object
            self._notify(kind)

    def _fail(self, kind: Kind, error: ControlError) -> None:
        with self._changed:
            self._notify(kind, str(error))

    def _notify(self, kind: Kind, problem: str = "") -> None:
        self._problems.pop(kind, None)
        if problem:
            self._problems[kind] = problem
        self._changes += 1
        self._changed.notify_all()
