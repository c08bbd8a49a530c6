"""Logs of pods through the API server, each line with its origin."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from segserve.platforms.cluster.watcher import Watcher
from segserve.platforms.errors import REFUSED, ControlError
from segserve_common.kube.kinds import PODS
from segserve_common.kube.names import GATEWAY, GROUP_LABEL, MANAGED_LABELS
from segserve_common.kube.requests import Selector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from segserve.platforms.cluster.context_client import ContextClient
    from segserve.platforms.port import Json, LogRequest

POLL_S: Final = 1.0
REOPEN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Source:
    """One container's log: of which pod, under which origin its lines are shown."""

    pod: str
    container: str
    origin: str


def sources(pods: Sequence[Json], groups: Sequence[str] | None, container: str | None) -> list[Source]:
    """Return the logs of the pods of some groups, of all where that is None; raises where none is of `container`."""
    found, known = [], set()
    for pod in pods:
        group = pod["metadata"]["labels"].get(GROUP_LABEL, GATEWAY)
        if groups is not None and group not in groups:
            continue
        for each in pod["spec"]["containers"]:
            known.add(each["name"])
            if container in (None, each["name"]):
                origin = f"{group}/{short_name(pod)}/{each['name']}"
                found.append(Source(pod["metadata"]["name"], each["name"], origin))
    if not found and known:
        raise ControlError(f"no container {container!r}; there are: {', '.join(sorted(known))}")
    return found


def printed(client: ContextClient, request: LogRequest, groups: Sequence[str] | None) -> Iterator[str]:
    """Yield the lines that are there. What has no log (a container that never ran before) is said in its place."""
    pods, _ = client.list(PODS, labels=MANAGED_LABELS)
    chosen = sources(pods, groups, request.container)
    if not chosen:
        raise ControlError("no pods that could have logs; `segserve describe NAME` says why")
    params = {"tailLines": str(request.lines)} | ({"previous": "true"} if request.previous else {})
    for source in chosen:
        try:
            for line in client.text(_path(client, source), {**params, "container": source.container}).splitlines():
                yield f"{source.origin} | {line}"
        except ControlError as error:
            yield f"{source.origin} | {_absent(error)}"


def followed(client: ContextClient, request: LogRequest, groups: Sequence[str] | None) -> Iterator[str]:
    """Yield lines as they come, also of pods and containers that come later.

    A stream may end at any time (API servers and balancers end them): it is opened again while its container runs.
    """
    lines: queue.Queue[str] = queue.Queue()
    readers: dict[Source, _Reader] = {}
    with Watcher(client, [Selector(PODS, MANAGED_LABELS)]) as watcher:
        while True:
            pods = watcher.all(PODS)
            for source in sources(pods, groups, request.container):
                if source not in readers and _started(pods, source) is not None:
                    readers[source] = _Reader(client, source, request.lines, lines)
            for source, reader in readers.items():
                reader.go_on(_started(pods, source))
            try:
                yield lines.get(timeout=POLL_S)
            except queue.Empty:
                continue


class _Reader:
    """Follows one container's log, stream after stream and start after start; every line is told once."""

    def __init__(self, client: ContextClient, source: Source, tail: int, told: queue.Queue[str]) -> None:
        self._calls, self._source, self._tail, self._told = client, source, tail, told
        self._thread: threading.Thread | None = None
        self._started: int | None = None
        self._trouble = self._cut = ""
        self._began: float | None = None  # when the first stream was opened
        # The server begins a log at a whole second: which of that second's lines were told is remembered.
        self._second: datetime | None = None
        self._of_second: Counter[str] = Counter()

    def go_on(self, started: int | None) -> None:
        """Open a stream where none is open and the container runs: `started` says how often it was started again."""
        if self._thread is not None and self._thread.is_alive():
            return
        if self._cut and started != self._started:
            self._tell(_timed(self._cut)[1])
        # Where the container still runs, the next stream has the line again, and whole.
        self._cut, self._started = "", started
        if started is not None:
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()

    def _read(self) -> None:
        begin, is_open = time.monotonic(), False
        try:
            with self._calls.lines(_path(self._calls, self._source), self._params()) as stream:
                is_open, self._trouble = True, ""
                self._began = begin if self._began is None else self._began
                self._tell_new(stream)
        except ControlError as error:
            # That a stream was cut is nothing to tell: the next one goes on where it was.
            if not is_open and str(error) != self._trouble:
                self._trouble = str(error)
                self._tell(_absent(error))
        time.sleep(REOPEN_S)

    def _params(self) -> dict[str, str]:
        params = {"container": self._source.container, "follow": "true", "timestamps": "true"}
        if self._second is not None:
            return params | {"sinceTime": f"{self._second:%Y-%m-%dT%H:%M:%SZ}"}
        if self._began is not None:
            return params | {"sinceSeconds": str(math.ceil(time.monotonic() - self._began) + 1)}
        return params | {"tailLines": str(self._tail)}

    def _tell_new(self, stream: Iterator[str]) -> None:
        told_before, is_new = self._of_second.copy(), True
        for line in stream:
            if not line.endswith("\n"):
                self._cut = line
                return
            second, text = _timed(line)
            if second is not None:
                is_new = not told_before[line]
                told_before[line] -= not is_new
            # A line without a time goes on where the one before it stopped.
            if is_new:
                self._remember(second, line)
                self._tell(text)

    def _remember(self, second: datetime | None, line: str) -> None:
        if second is None or (self._second is not None and second < self._second):
            return
        if second != self._second:
            self._second, self._of_second = second, Counter()
        self._of_second[line] += 1

    def _tell(self, text: str) -> None:
        self._told.put(f"{self._source.origin} | {text}")


def _timed(line: str) -> tuple[datetime | None, str]:
    """Return the second (UTC) and the text of a line as a server sends it with times; None where it has no time."""
    stamp, _, text = line.rstrip("\r\n").partition(" ")
    try:
        return datetime.fromisoformat(stamp).astimezone(UTC).replace(microsecond=0), text
    except ValueError:
        return None, line.rstrip("\r\n")


def _started(pods: Sequence[Json], source: Source) -> int | None:
    """Return how often a container was started again; None where it does not run."""
    for pod in pods:
        if pod["metadata"]["name"] == source.pod:
            for each in (pod.get("status") or {}).get("containerStatuses") or ():
                if each["name"] == source.container and "running" in (each.get("state") or {}):
                    return int(each.get("restartCount", 0))
    return None


def short_name(pod: Mapping[str, Any]) -> str:
    """Return what tells a pod from its siblings: the end of its name, after the Deployment's."""
    name, template = str(pod["metadata"]["name"]), (pod["metadata"].get("labels") or {}).get("pod-template-hash")
    return name[name.rindex(template) :] if template and template in name else name


def _absent(error: ControlError) -> str:
    return f"(no log: {str(error).removeprefix(REFUSED)})"


def _path(client: ContextClient, source: Source) -> str:
    return client.path(PODS, source.pod, None, "log")
