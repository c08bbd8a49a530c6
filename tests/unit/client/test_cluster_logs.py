"""Logs of pods: followed for as long as their container runs, whoever ends the streams between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from fakes.kube_http import FakeServer, refusal
from segserve_platform.platforms.cluster import logs
from segserve_platform.platforms.port import LogRequest

POD = "segserve-default--main-1-abc-a"
ORIGIN = "main-1/abc-a/triton | "
START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(seconds=1000)


class PodLog:
    """One container's log as a kubelet serves it: `sinceTime` counts in whole seconds, followers wait for more."""

    def __init__(self) -> None:
        self.entries: list[tuple[datetime, str]] = []
        self.refused: list[httpx.Response] = []
        self.opened = 0
        self._cuts = 0
        self._is_over = False
        self._unfinished = ""
        self._changed = threading.Condition(threading.RLock())

    def write(self, *texts: str, at_s: float) -> None:
        with self._changed:
            self.entries += [(START + timedelta(seconds=at_s), text) for text in texts]
            self._changed.notify_all()

    def cut(self, *, within: str = "") -> None:
        """End every open stream, as a balancer does with what it has seen enough of; `within` is half a line."""
        with self._changed:
            self._cuts += 1
            self._unfinished = within
            self._changed.notify_all()

    def cut_and_write(self, *texts: str, at_s: float) -> None:
        """Write lines that no stream shows before it is cut."""
        with self._changed:
            self.cut()
            self.write(*texts, at_s=at_s)

    def end(self, *, within: str) -> None:
        """End as a container does: whoever asks gets all that was written, and the end."""
        with self._changed:
            self._is_over = True
            self.cut(within=within)

    def wait_until_opened(self, times: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.opened >= times, 60)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.refused:
            return self.refused.pop(0)
        params = request.url.params
        with self._changed:
            self.opened += 1
            self._changed.notify_all()
            position = max(0, len(self.entries) - int(params["tailLines"])) if "tailLines" in params else 0
            since = START
            if "sinceTime" in params:
                since = datetime.fromisoformat(params["sinceTime"]).replace(microsecond=0)
            if "sinceSeconds" in params:
                since = NOW - timedelta(seconds=int(params["sinceSeconds"]))
            shown = _stamped if params.get("timestamps") == "true" else _plain
            return httpx.Response(200, content=self._stream(position, since, self._cuts, shown))

    def _stream(self, position: int, since: datetime, cuts: int, shown: Callable[..., str]) -> Iterator[bytes]:
        while True:
            with self._changed:
                while len(self.entries) <= position and self._cuts == cuts and not self._is_over:
                    self._changed.wait()
                if self._cuts > cuts or len(self.entries) <= position:
                    yield shown(self.entries[-1][0], self._unfinished).encode() if self._unfinished else b""
                    return
                new, position = self.entries[position:], len(self.entries)
            yield "".join(f"{shown(at, text)}\n" for at, text in new if at >= since).encode()


def _plain(_: datetime, text: str) -> str:
    return text


def _stamped(at: datetime, text: str) -> str:
    # Nodes write their own zone, and nanoseconds.
    return f"{at + timedelta(hours=2):%Y-%m-%dT%H:%M:%S.%f}123+02:00 {text}"


def pod(restarts: int = 0) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/managed-by": "segserve",
        "app.kubernetes.io/part-of": "segserve",
        "segserve.dev/group": "main-1",
        "pod-template-hash": "abc",
    }
    running = [{"name": "triton", "restartCount": restarts, "state": {"running": {}}}]
    return {
        "metadata": {"name": POD, "labels": labels},
        "spec": {"containers": [{"name": "triton"}]},
        "status": {"containerStatuses": running},
    }


@pytest.fixture
def server(log: PodLog, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    for pause in ("POLL_S", "REOPEN_S"):
        monkeypatch.setattr(logs, pause, 0.01, raising=False)
    found = FakeServer()
    found.put("api/v1/pods", pod())
    found.answers["GET", f"/api/v1/namespaces/lab/pods/{POD}/log"] = log.answer
    return found


@pytest.fixture
def log() -> PodLog:
    return PodLog()


def followed(server: FakeServer, lines: int = 50) -> Iterator[str]:
    return server.platform().logs(LogRequest(follow=True, lines=lines))


def taken(lines: Iterator[str], count: int) -> list[str]:
    return [next(lines).removeprefix(ORIGIN) for _ in range(count)]


def test_lines_are_shown_without_the_times_by_which_they_are_known(server: FakeServer, log: PodLog) -> None:
    log.write("one", "two  of two", "", at_s=1)

    assert taken(followed(server), 3) == ["one", "two  of two", ""]


def test_a_stream_that_ends_is_opened_again_without_a_line_lost_or_twice(server: FakeServer, log: PodLog) -> None:
    """Lines of one second, and such as are alike to the nanosecond, are told apart too."""
    lines = followed(server)
    log.write("one", at_s=1.2)
    log.write("two", "again", "again", at_s=2.5)
    assert taken(lines, 4) == ["one", "two", "again", "again"]

    log.cut_and_write("again", at_s=2.5)
    log.write("three", at_s=2.7)
    log.write("four", at_s=3)

    assert taken(lines, 3) == ["again", "three", "four"]


def test_a_log_is_followed_through_many_cuts(server: FakeServer, log: PodLog) -> None:
    lines = followed(server)
    for number in range(20):
        log.write(f"line {number}", at_s=number / 3)
        assert taken(lines, 1) == [f"line {number}"]
        log.cut()


def test_a_line_that_a_cut_goes_through_is_shown_whole_and_once(server: FakeServer, log: PodLog) -> None:
    lines = followed(server)
    log.write("one", at_s=1)
    assert taken(lines, 1) == ["one"]

    log.cut(within="the first ha")
    log.write("the first half and the second", "two", at_s=1)

    assert taken(lines, 2) == ["the first half and the second", "two"]


def test_nothing_is_lost_where_nothing_was_shown_before_the_cut(server: FakeServer, log: PodLog) -> None:
    log.write("of the past", at_s=1)
    shown: list[str] = []
    lines = followed(server, lines=0)
    reader = threading.Thread(target=lambda: shown.extend(taken(lines, 1)))
    reader.start()
    log.wait_until_opened(1)

    log.cut_and_write("new", at_s=1000)
    reader.join()

    assert shown == ["new"]


def test_a_container_that_started_again_is_followed_from_where_the_one_before_ended(
    server: FakeServer, log: PodLog
) -> None:
    lines = followed(server, lines=2)
    log.write("one", at_s=1)
    assert taken(lines, 1) == ["one"]

    log.entries.clear()
    log.write("back", "and", "up", "soon", at_s=2)
    server.put("api/v1/pods", pod(restarts=1))
    log.cut()

    assert taken(lines, 4) == ["back", "and", "up", "soon"]


def test_a_stream_that_cannot_be_opened_again_is_said_once_and_tried_until_it_can(
    server: FakeServer, log: PodLog
) -> None:
    lines = followed(server)
    log.write("one", at_s=1)
    assert taken(lines, 1) == ["one"]

    log.refused += [refusal(500, "the kubelet is away") for _ in range(3)]
    log.cut()
    log.write("two", at_s=2)

    said, shown = taken(lines, 2)
    assert said.startswith("(no log: ")
    assert "the kubelet is away" in said
    assert shown == "two"


def test_a_log_that_cannot_be_read_at_first_begins_with_the_lines_that_were_asked_for(
    server: FakeServer, log: PodLog
) -> None:
    log.refused.append(refusal(500, "the kubelet is away"))
    log.write("one", "two", "three", at_s=1)

    assert taken(followed(server, lines=2), 3)[1:] == ["two", "three"]


def test_the_last_words_of_a_container_are_shown_without_a_line_end_too(server: FakeServer, log: PodLog) -> None:
    lines = followed(server)
    log.write("one", at_s=1)
    assert taken(lines, 1) == ["one"]

    ended = pod()
    ended["status"]["containerStatuses"][0]["state"] = {"terminated": {}}
    server.put("api/v1/pods", ended)
    log.end(within="Segmentation fault")

    assert taken(lines, 1) == ["Segmentation fault"]
