"""Objects of some kinds, kept as the API server's watch events tell of them."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from segserve.platforms.cluster.calls import selectors
from segserve.platforms.errors import ControlError
from segserve_operator.adapters.kube.requests import stripped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from segserve.platforms.cluster.calls import Calls
    from segserve.platforms.port import Json
    from segserve_common.kube.kinds import Kind

WATCH_S: Final = 240
RETRY_S: Final = 1.0
GONE: Final = 410
"""The code of a version that is too old to go on from: the objects are listed again."""


@dataclass(frozen=True, slots=True)
class Look:
    """Which objects to keep: a kind, and labels or fields to choose by."""

    kind: Kind
    labels: Mapping[str, str] = field(default_factory=dict)
    fields: str = ""


class Watching:
    """Keeps what `looks` choose for the time of the block. What is known at its start is the server's list.

    Where the server cannot be reached later on, what was last seen stays, and `trouble` says why, until it can.
    """

    def __init__(self, calls: Calls, looks: Sequence[Look]) -> None:
        self._calls, self._looks = calls, looks
        self._known: dict[str, dict[str, Json]] = {}
        self._troubles: dict[str, str] = {}
        self._changed, self._ended = threading.Condition(), threading.Event()
        self._version = 0

    def __enter__(self) -> Self:
        versions = [self._list(look) for look in self._looks]
        for look, version in zip(self._looks, versions, strict=True):
            # A stream without an end cannot be asked to stop: it goes with the process.
            threading.Thread(target=self._follow, args=(look, version), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def all(self, kind: Kind) -> list[Json]:
        """Return the objects of a kind by name."""
        with self._changed:
            return [item for _, item in sorted(self._known.get(kind.plural, {}).items())]

    @property
    def trouble(self) -> str:
        """Why what is known may be old; empty where it is not."""
        with self._changed:
            return next(iter(self._troubles.values()), "")

    def wait(self, since: int, timeout_s: float) -> int:
        """Return the number of changes so far, as soon as it is another than `since` or the time has passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != since, timeout_s)
            return self._version

    def _list(self, look: Look) -> str:
        items, version = self._calls.list(look.kind, labels=look.labels, fields=look.fields)
        with self._changed:
            self._known[look.kind.plural] = {item["metadata"]["name"]: item for item in items}
            self._tell(look, "")
        return version

    def _follow(self, look: Look, version: str) -> None:
        while not self._ended.is_set():
            try:
                self._stream(look, version or self._list(look))
                version = ""
            except ControlError as error:
                version = ""
                with self._changed:
                    self._tell(look, str(error))
                self._ended.wait(RETRY_S)

    def _stream(self, look: Look, version: str) -> None:
        """Follow one watch to its end: the server's time limit, or an event that says to begin anew."""
        params = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(WATCH_S)}
        params |= selectors(look.labels, look.fields)
        with self._calls.lines(self._calls.path(look.kind), params, look.kind) as lines:
            for line in lines:
                what, item = self._event(line)
                if self._ended.is_set() or what == "ERROR":
                    return
                self._keep(look, what, item)

    def _event(self, line: str) -> tuple[str, Json]:
        """Return an event's type and object; raises where it cannot be read, or is an error but that of old age."""
        try:
            event = json.loads(line)
            what, item = event["type"], event["object"]
            named = item["code"] if what == "ERROR" else item["metadata"]["name"]
        except (ValueError, TypeError, LookupError) as error:
            raise self._calls.unreadable(line, "event of a watch") from error
        if what == "ERROR" and named != GONE:
            raise ControlError(f"{self._calls.server} ended the watch: {item.get('message', named)}")
        return what, item

    def _keep(self, look: Look, what: str, item: Json) -> None:
        name = item["metadata"]["name"]
        with self._changed:
            if what == "DELETED":
                self._known[look.kind.plural].pop(name, None)
            else:
                self._known[look.kind.plural][name] = stripped(item)
            self._tell(look, "")

    def _tell(self, look: Look, trouble: str) -> None:
        self._troubles.pop(look.kind.plural, None)
        if trouble:
            self._troubles[look.kind.plural] = trouble
        self._version += 1
        self._changed.notify_all()
