"""What a proxy before an API server sees of a request, and what it can be told to do to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_PATH = re.compile(r"^/(?:api|apis/[^/]+)/[^/]+(?:/namespaces/[^/]+(?=/))?/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?")


@dataclass(frozen=True, slots=True)
class Call:
    """One request: its number among all, and the object that it is about."""

    number: int
    method: str
    path: str
    query: str = ""
    agent: str = ""

    @property
    def resource(self) -> str:
        """The plural of the kind."""
        found = _PATH.match(self.path)
        return found["resource"] if found else ""

    @property
    def name(self) -> str:
        """The object's name; empty for lists and creations."""
        found = _PATH.match(self.path)
        return (found["name"] or "") if found else ""

    @property
    def watches(self) -> bool:
        """Whether it is a watch."""
        return self.method == "GET" and re.search(r"(^|&)watch=(true|1)(&|$)", self.query) is not None

    @property
    def writes(self) -> bool:
        """Whether it changes the world: leases and events are the writers' own affair."""
        apart = self.resource in ("leases", "events") or self.resource.endswith("reviews")
        return self.method in ("POST", "PUT", "PATCH", "DELETE") and not apart


@dataclass(frozen=True, slots=True)
class Kill:
    """Do away with the caller before its call is passed on, or after the server has done it; there is no answer.

    `strike` may block; it returns when the process is dead or sure to be.
    """

    strike: Callable[[], object]
    after: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer with an error; where it `landed`, the server has done what was asked for."""

    code: int
    retry_after_s: int | None = None
    landed: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """Answer nothing for so long, and then break the connection."""

    seconds: float
    landed: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens from the `nth` fitting call on, so many `times` (None: always)."""

    action: Kill | Answer | Hang
    nth: int = 1
    times: int | None = 1
    fits: Callable[[Call], bool] = lambda call: call.writes
