"""The history of a model: edits, revisions, decisions, events and failed requests in one list, ordered by time."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from segserve_platform.platforms.port import Json, PlatformEvent

Kind: TypeAlias = Literal["edit", "revision", "rollout", "state", "event", "process", "failed", "refused", "left"]

_MINUTE_S: Final = 60.0
_REFUSED_GRPC: Final = frozenset(
    {
        *("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"),
        *("FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED", "UNAUTHENTICATED"),
    }
)
_LEFT: Final = frozenset({"DC", "DR"})
"""Envoy's flags of a request whose caller disconnected, or reset its stream of HTTP/2."""
_MODEL_PATH: Final = re.compile(r"/v2/models/([^/]+)")
_MOST: Final = 0.8
"""Share of failed requests from which on their caller or slice is named."""
_CAUSES: Final = 3
_DETAIL_LENGTH: Final = 60


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One thing that happened at a Unix time, or from then until `until_s`."""

    at_s: float
    kind: Kind
    text: str
    warning: bool = False
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A line of the access log; `at_s` is when the request began (Unix time), and `fields` are as they were written."""

    at_s: float
    fields: Mapping[str, Any]

    @property
    def model(self) -> str | None:
        """The model that it names; a request that was refused before its name was read has only the path."""
        named = _MODEL_PATH.match(str(self.fields.get("path") or ""))
        return self.fields.get("model") or (named[1] if named is not None else None)

    @property
    def ended_as(self) -> Kind | None:
        """Whether the servers or the gateway failed it, refused it, or its caller left; None if it was answered."""
        code, grpc = int(self.fields.get("response_code") or 0), str(self.fields.get("grpc_status") or "OK")
        if not _LEFT.isdisjoint(str(self.fields.get("response_flags") or "").split(",")):
            return "left"
        if code == 0 or code >= 500 or (grpc not in _REFUSED_GRPC and grpc != "OK"):
            return "failed"
        return "refused" if code >= 400 or grpc != "OK" else None

    @property
    def cause(self) -> str:
        """The status, and what the gateway says of it."""
        status = self.fields.get("grpc_status") or f"HTTP {self.fields.get('response_code', 0)}"
        details = str(self.fields.get("response_code_details") or "")[:_DETAIL_LENGTH]
        return f"{status} by the server" if details == "via_upstream" else f"{status} {details}".rstrip()


def read_requests(lines: Iterable[str]) -> Iterator[LoggedRequest]:
    """Yield the requests of an access log; other lines, and those that cannot be read, are left out."""
    for line in lines:
        if not line.startswith("{"):
            continue
        try:
            fields = json.loads(line)
            int(fields.get("response_code") or 0)
            yield LoggedRequest(datetime.fromisoformat(fields["start_time"]).timestamp(), fields)
        except (ValueError, TypeError, LookupError, RecursionError):
            continue


def history(
    model: Json,
    records: Iterable[Json],
    events: Iterable[PlatformEvent],
    requests: Iterable[LoggedRequest],
    since_s: float,
) -> list[HistoryEntry]:
    """Return what happened to a model since a Unix time, oldest first.

    `records` are of rollouts, `events` of it, its pool and their servers; of `requests` only its own that were not
    answered are kept. The same said twice is listed once.
    """
    name, status = model["metadata"]["name"], model.get("status") or {}
    own = [record for record in records if record["spec"]["model"] == name]
    said = [
        *(entry for record in own for entry in _decisions(record)),
        *(_event(each, f"model {name}: ") for each in events),
        *(_condition(each) for each in status.get("conditions") or () if _is_problem(each)),
    ]
    unique: dict[str, HistoryEntry] = {}
    for at_s, key, entry in said:
        if at_s >= since_s:
            unique.setdefault(key, entry)
    failed = [
        (kind, each) for each in requests if each.model == name and each.at_s >= since_s and (kind := each.ended_as)
    ]
    roles = (entry for entry in _roles(status, unique.values()) if entry.at_s >= since_s)
    return sorted((*unique.values(), *roles, *_failures(failed)), key=lambda entry: entry.at_s)


_Said: TypeAlias = tuple[float, str, HistoryEntry]
"""When something happened, a key that is equal where two sources say the same, and how it is shown."""


def _key(at_s: float, message: str) -> str:
    return f"{int(at_s // _MINUTE_S)} {message}"


def _decisions(record: Json) -> Iterator[_Said]:
    from segserve_platform.platforms.rollouts.words import SEGSERVE, actor

    for each in (record.get("status") or {}).get("decisions") or ():
        at_s, why = float(each["atSeconds"]), _why(each)
        by = "" if (each.get("actor") or SEGSERVE) == SEGSERVE else f" ({actor(each['actor'])})"
        text = f"{record['spec']['candidate']}: {each['phase']} at {each['weight']} %: {why}{by}"
        yield at_s, _key(at_s, each.get("message") or why), HistoryEntry(at_s, "rollout", text, _is_bad(each["phase"]))


def _is_bad(phase: str) -> bool:
    return phase in ("RolledBack", "Quarantined")


def _event(event: PlatformEvent, own: str) -> _Said:
    kind: Kind = "edit" if event.reason == "Edited" else "process" if _is_process(event.about) else "event"
    often = f" ({event.count} times)" if event.count > 1 else ""
    why = event.message if kind != "event" else ": ".join(filter(None, (event.reason, event.message)))
    entry = HistoryEntry(event.at_s, kind, f"{event.about}: {why}{often}".removeprefix(own), event.warning)
    # Several processes may say the same; a decision's event repeats the record.
    said = f"{event.about}: {why}" if kind == "process" else event.message or why
    return event.at_s, _key(event.at_s, said), entry


def _is_process(about: str) -> bool:
    return about.startswith(("server", "gateway"))


_GOOD: Final = ("ArtifactVerified", "RevisionLoaded", "GoldenPassed", "TrafficReady", "Ready")
_BAD: Final = ("Degraded", "Stalled")


def _is_problem(condition: Json) -> bool:
    return (condition["type"] in _GOOD and condition["status"] == "False") or (
        condition["type"] in _BAD and condition["status"] == "True"
    )


def _condition(condition: Json) -> _Said:
    at_s, why = _unix_s(condition["lastTransitionTime"]), _why(condition)
    entry = HistoryEntry(at_s, "state", f"{condition['type']} is {condition['status']}: {why}", warning=True)
    return at_s, _key(at_s, condition.get("message") or why), entry


def _roles(status: Json, known: Collection[HistoryEntry]) -> Iterator[HistoryEntry]:
    """Yield when revisions got their roles, unless an entry of that minute names the revision: events may be lost."""
    for role, holder in (status.get("roles") or {}).items():
        at_s, revision = _unix_s(holder["since"]), holder["revision"]
        failed = holder.get("state") == "Failed"
        if not any(revision in entry.text and abs(entry.at_s - at_s) < _MINUTE_S for entry in known):
            why = _why(holder)
            text = f"{revision} is {role}{', and failed' if failed else ''}{f': {why}' if why else ''}"
            yield HistoryEntry(at_s, "revision", text, failed)


def _failures(requests: Iterable[tuple[Kind, LoggedRequest]]) -> Iterator[HistoryEntry]:
    """Yield an entry for each stretch of minutes in which requests of one revision ended in one way."""
    by_end: defaultdict[tuple[Kind, str], list[LoggedRequest]] = defaultdict(list)
    for kind, each in requests:
        by_end[kind, str(each.fields.get("revision") or "")].append(each)
    for (kind, revision), ended in by_end.items():
        ended.sort(key=lambda each: each.at_s)
        stretch = [ended[0]]
        for before, each in itertools.pairwise(ended):
            if each.at_s - before.at_s > 2 * _MINUTE_S:
                yield _stretch(kind, revision, stretch)
                stretch = []
            stretch.append(each)
        yield _stretch(kind, revision, stretch)


_ENDS: Final[Mapping[Kind, str]] = {
    "failed": "failed",
    "refused": "were refused",
    "left": "ended as their callers left",
}


def _stretch(kind: Kind, revision: str, requests: Sequence[LoggedRequest]) -> HistoryEntry:
    causes = Counter(each.cause for each in requests).most_common(_CAUSES)
    per_minute = max(Counter(each.at_s // _MINUTE_S for each in requests).values())
    parts = [f"{len(requests)} requests{f' to {revision}' if revision else ''} {_ENDS[kind]}"]
    if len(requests) == 1:
        parts = [parts[0].replace("requests", "request").replace("were", "was").replace("their callers", "its caller")]
    elif per_minute < len(requests):
        parts.append(f"at most {per_minute} a minute")
    parts.append(", ".join(f"{cause} ({count})" if len(causes) > 1 else cause for cause, count in causes))
    for field in ("caller", "slice"):
        value, count = Counter(str(each.fields.get(field) or "") for each in requests).most_common(1)[0]
        if value and count >= _MOST * len(requests):
            parts.append(f"{field} {value}{'' if count == len(requests) else f' ({count})'}")
    example = requests[-1].fields.get("request_id")
    if example:
        parts.append(f"such as {example}")
    return HistoryEntry(requests[0].at_s, kind, "; ".join(parts), kind == "failed", requests[-1].at_s)


def _why(entry: Json) -> str:
    return ": ".join(filter(None, (entry.get("reason"), entry.get("message"))))


def _unix_s(time_text: str) -> float:
    return datetime.fromisoformat(time_text).timestamp()
