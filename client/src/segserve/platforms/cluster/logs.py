"""Logs of pods through the API server, each line with its origin."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve.platforms.cluster.watching import Look, Watching
from segserve.platforms.errors import REFUSED, ControlError
from segserve_builder.cluster.names import GATEWAY, GROUP_LABEL, MANAGED_LABELS
from segserve_operator.adapters.kube.api import PODS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from segserve.platforms.cluster.calls import Calls
    from segserve.platforms.port import Json, LogRequest

POLL_S: Final = 1.0


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


def printed(calls: Calls, request: LogRequest, groups: Sequence[str] | None) -> Iterator[str]:
    """Yield the lines that are there. What has no log (a container that never ran before) is said in its place."""
    pods, _ = calls.list(PODS, labels=MANAGED_LABELS)
    chosen = sources(pods, groups, request.container)
    if not chosen:
        raise ControlError("no pods that could have logs; `segserve describe NAME` says why")
    params = {"tailLines": str(request.lines)} | ({"previous": "true"} if request.previous else {})
    for source in chosen:
        try:
            for line in calls.text(_path(calls, source), {**params, "container": source.container}).splitlines():
                yield f"{source.origin} | {line}"
        except ControlError as error:
            yield f"{source.origin} | {_absent(error)}"


def followed(calls: Calls, request: LogRequest, groups: Sequence[str] | None) -> Iterator[str]:
    """Yield lines as they come, also of pods and containers that come later."""
    lines: queue.Queue[str] = queue.Queue()
    begun: set[tuple[str, str, int]] = set()
    with Watching(calls, [Look(PODS, MANAGED_LABELS)]) as watching:
        while True:
            pods = watching.all(PODS)
            for source in sources(pods, groups, request.container):
                started = _started(pods, source)
                if started is not None and (source.pod, source.container, started) not in begun:
                    begun.add((source.pod, source.container, started))
                    given = (calls, source, request.lines, lines)
                    threading.Thread(target=_stream, args=given, daemon=True).start()
            try:
                yield lines.get(timeout=POLL_S)
            except queue.Empty:
                continue


def _started(pods: Sequence[Json], source: Source) -> int | None:
    """Return how often a container was started again; None where it does not run."""
    for pod in pods:
        if pod["metadata"]["name"] == source.pod:
            for each in (pod.get("status") or {}).get("containerStatuses") or ():
                if each["name"] == source.container and "running" in (each.get("state") or {}):
                    return int(each.get("restartCount", 0))
    return None


def _stream(calls: Calls, source: Source, lines: int, told: queue.Queue[str]) -> None:
    params = {"container": source.container, "follow": "true", "tailLines": str(lines)}
    try:
        with calls.lines(_path(calls, source), params) as stream:
            for line in stream:
                told.put(f"{source.origin} | {line}")
    except ControlError as error:
        told.put(f"{source.origin} | {_absent(error)}")


def short_name(pod: Mapping[str, Any]) -> str:
    """Return what tells a pod from its siblings: the end of its name, after the Deployment's."""
    name, template = str(pod["metadata"]["name"]), (pod["metadata"].get("labels") or {}).get("pod-template-hash")
    return name[name.rindex(template) :] if template and template in name else name


def _absent(error: ControlError) -> str:
    return f"(no log: {str(error).removeprefix(REFUSED)})"


def _path(calls: Calls, source: Source) -> str:
    return f"{calls.path(PODS, source.pod)}/log"
