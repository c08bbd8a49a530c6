"""Logs of pods, read through the API server, with the origin of each line."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from segserve_common.kube.kinds import PODS
from segserve_common.kube.names import COMPONENT_LABEL, ENVOY_CONTAINER, GATEWAY, GROUP_LABEL, MANAGED_LABELS
from segserve_common.kube.requests import Selector
from segserve_platform.platforms.cluster.watcher import Watcher
from segserve_platform.platforms.errors import REFUSED, ControlError, InvalidResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from segserve_platform.platforms.cluster.context_client import ContextClient
    from segserve_platform.platforms.port import Json, LogRequest

POLL_S: Final = 1.0
REOPEN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class LogSource:
    """The log of a pod's container, and the origin that is shown with its lines."""

    pod: str
    container: str
    origin: str


def sources(pods: Sequence[Json], groups: Sequence[str] | None, container: str | None) -> list[LogSource]:
    """Return the logs of the pods of `groups`, of all if that is None; `ControlError` if none has the `container`."""
    selected, names = [], set()
    for pod in pods:
        group = pod["metadata"]["labels"].get(GROUP_LABEL, GATEWAY)
        if groups is not None and group not in groups:
            continue
        for each in pod["spec"]["containers"]:
            names.add(each["name"])
            if container in (None, each["name"]):
                origin = f"{group}/{short_name(pod)}/{each['name']}"
                selected.append(LogSource(pod["metadata"]["name"], each["name"], origin))
    if not selected and names:
        raise ControlError(f"no container {container!r}; there are: {', '.join(sorted(names))}")
    return selected


def read(client: ContextClient, request: LogRequest, groups: Sequence[str] | None) -> Iterator[str]:
    """Yield the existing lines; for a container without a log, as before its first start, a line with the reason."""
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


def read_gateways(client: ContextClient, since_s: float) -> Iterator[str]:
    """Yield the lines of all gateways' Envoys since a Unix time."""
    pods, _ = client.list(PODS, labels={**MANAGED_LABELS, COMPONENT_LABEL: GATEWAY})
    since = f"{datetime.fromtimestamp(since_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
    for source in sources(pods, None, ENVOY_CONTAINER) if pods else ():
        # A container that has not started has no log.
        with (
            suppress(InvalidResourceError),
            client.lines(_path(client, source), {"container": source.container, "sinceTime": since}) as lines,
        ):
            yield from lines


def follow(client: ContextClient, request: LogRequest, groups: Sequence[str] | None) -> Iterator[str]:
    """Yield lines as they are written, also of pods and containers that start later.

    API servers and load balancers end streams at any time: a stream is opened again while its container runs.
    """
    lines: queue.Queue[str] = queue.Queue()
    readers: dict[LogSource, _Reader] = {}
    with Watcher(client, [Selector(PODS, MANAGED_LABELS)]) as watcher:
        while True:
            pods = watcher.all(PODS)
            for source in sources(pods, groups, request.container):
                if source not in readers and _started(pods, source) is not None:
                    readers[source] = _Reader(client, source, request.lines, lines)
            for source, reader in readers.items():
                reader.resume(_started(pods, source))
            try:
                yield lines.get(timeout=POLL_S)
            except queue.Empty:
                continue


class _Reader:
    """Follows one container's log across streams and restarts, and delivers every line once."""

    def __init__(self, client: ContextClient, source: LogSource, tail: int, lines: queue.Queue[str]) -> None:
        self._client, self._source, self._tail, self._lines = client, source, tail, lines
        self._thread: threading.Thread | None = None
        self._started: int | None = None
        self._error = self._cut = ""
        self._began: float | None = None  # when the first stream was opened
        # The server begins a log at a whole second, so the lines delivered of the last second are remembered.
        self._second: datetime | None = None
        self._of_second: Counter[str] = Counter()

    def resume(self, started: int | None) -> None:
        """Open a stream if none is open and the container runs; `started` is its number of restarts, None if not."""
        if self._thread is not None and self._thread.is_alive():
            return
        if self._cut and started != self._started:
            self._deliver(_timed(self._cut)[1])
        # If the container still runs, the next stream has the whole line again.
        self._cut, self._started = "", started
        if started is not None:
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()

    def _read(self) -> None:
        begin, is_open = time.monotonic(), False
        try:
            with self._client.lines(_path(self._client, self._source), self._params()) as stream:
                is_open, self._error = True, ""
                self._began = begin if self._began is None else self._began
                self._deliver_new(stream)
        except ControlError as error:
            # The end of an open stream is no error for the user: the next one continues there.
            if not is_open and str(error) != self._error:
                self._error = str(error)
                self._deliver(_absent(error))
        time.sleep(REOPEN_S)

    def _params(self) -> dict[str, str]:
        params = {"container": self._source.container, "follow": "true", "timestamps": "true"}
        if self._second is not None:
            return params | {"sinceTime": f"{self._second:%Y-%m-%dT%H:%M:%SZ}"}
        if self._began is not None:
            return params | {"sinceSeconds": str(math.ceil(time.monotonic() - self._began) + 1)}
        return params | {"tailLines": str(self._tail)}

    def _deliver_new(self, stream: Iterator[str]) -> None:
        delivered, is_new = self._of_second.copy(), True
        for line in stream:
            if not line.endswith("\n"):
                self._cut = line
                return
            second, text = _timed(line)
            if second is not None:
                is_new = not delivered[line]
                delivered[line] -= not is_new
            # A line without a time continues the one before.
            if is_new:
                self._remember(second, line)
                self._deliver(text)

    def _remember(self, second: datetime | None, line: str) -> None:
        if second is None or (self._second is not None and second < self._second):
            return
        if second != self._second:
            self._second, self._of_second = second, Counter()
        self._of_second[line] += 1

    def _deliver(self, text: str) -> None:
        self._lines.put(f"{self._source.origin} | {text}")


def _timed(line: str) -> tuple[datetime | None, str]:
    """Return the second (UTC) and the text of a line that a server sent with times; None if it has no time."""
    stamp, _, text = line.rstrip("\r\n").partition(" ")
    try:
        return datetime.fromisoformat(stamp).astimezone(UTC).replace(microsecond=0), text
    except ValueError:
        return None, line.rstrip("\r\n")


def _started(pods: Sequence[Json], source: LogSource) -> int | None:
    """Return a container's number of restarts, None if it does not run."""
    for pod in pods:
        if pod["metadata"]["name"] == source.pod:
            for each in (pod.get("status") or {}).get("containerStatuses") or ():
                if each["name"] == source.container and "running" in (each.get("state") or {}):
                    return int(each.get("restartCount", 0))
    return None


def short_name(pod: Mapping[str, Any]) -> str:
    """Return the part of a pod's name after that of its Deployment."""
    name, template = str(pod["metadata"]["name"]), (pod["metadata"].get("labels") or {}).get("pod-template-hash")
    return name[name.rindex(template) :] if template and template in name else name


def _absent(error: ControlError) -> str:
    return f"(no log: {str(error).removeprefix(REFUSED)})"


def _path(client: ContextClient, source: LogSource) -> str:
    return client.path(PODS, source.pod, None, "log")
