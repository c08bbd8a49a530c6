"""A watch goes on whatever the API server, or what stands before it, sends; and says why what it knows may be old."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from fakes.kube_http import FakeServer
from segserve_common.kube.kinds import PODS
from segserve_common.kube.requests import Selector
from segserve_platform.platforms.cluster.watcher import Watcher

PATH = "/api/v1/namespaces/lab/pods"


def pod(phase: str) -> dict[str, Any]:
    return {"metadata": {"name": "a", "namespace": "lab", "resourceVersion": "1"}, "status": {"phase": phase}}


def event(kind: str, item: Any) -> str:
    return json.dumps({"type": kind, "object": item}) + "\n"


class Server(FakeServer):
    """Every watch is answered with `sent`, as long as there is any."""

    sent: str = ""

    def answer(self, request: httpx.Request) -> httpx.Response:
        found = self._list(request) or []
        if "watch" not in request.url.params:
            return httpx.Response(200, json={"items": found, "metadata": {"resourceVersion": "1"}})
        return httpx.Response(200, text=self.sent) if self.sent else self._watch(found)


@pytest.fixture
def server() -> Server:
    found = Server()
    found.put("api/v1/pods", pod("Pending"))
    found.answers["GET", PATH] = found.answer
    return found


def problem_of(watcher: Watcher) -> str:
    version = 0
    while not (problem := watcher.problem):
        version = watcher.wait(version, 60)
    return problem


def wait_for_phase(watcher: Watcher, phase: str) -> None:
    version = 0
    while [each["status"]["phase"] for each in watcher.all(PODS)] != [phase]:
        version = watcher.wait(version, 60)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param('{"type": "MODIFIED", "obj', id="a line that is cut"),
        pytest.param("<html>502 Bad Gateway</html>\n", id="a page of a proxy"),
        pytest.param("null\n", id="no mapping"),
        pytest.param('{"kind": "Status"}\n', id="no event"),
        pytest.param(event("MODIFIED", {"metadata": {}}), id="an object without a name"),
        pytest.param(event("ERROR", {"code": 500, "message": "etcd is away"}), id="an error of the server's"),
    ],
)
def test_a_watch_that_cannot_be_read_is_said_and_begun_again(server: Server, sent: str) -> None:
    server.sent = sent
    with Watcher(server.client(), [Selector(PODS)]) as watcher:
        assert "http://api.test" in problem_of(watcher)

        server.sent = ""
        server.put("api/v1/pods", pod("Running"))
        wait_for_phase(watcher, "Running")


def test_a_watch_whose_version_is_too_old_begins_anew_without_a_word(server: Server) -> None:
    with Watcher(server.client(), [Selector(PODS)]) as watcher:
        server.sent = event("ERROR", {"code": 410, "reason": "Expired", "message": "too old resource version"})
        server.put("api/v1/pods", pod("Running"))
        wait_for_phase(watcher, "Running")

        assert not watcher.problem


@pytest.mark.parametrize("listed", ["null", "[]", "{}", '{"items": []}'])
def test_a_list_that_is_none_is_said_and_asked_for_again(server: Server, listed: str) -> None:
    with Watcher(server.client(), [Selector(PODS)]) as watcher:
        server.answers["GET", PATH] = lambda _: httpx.Response(200, text=listed)
        assert "http://api.test" in problem_of(watcher)

        server.answers["GET", PATH] = server.answer
        server.put("api/v1/pods", pod("Running"))
        wait_for_phase(watcher, "Running")
