"""A watch goes on whatever the API server, or what stands before it, sends; and says why what it knows may be old."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from fakes.kube_http import FakeServer
from segserve.platforms.cluster import watching
from segserve.platforms.cluster.watching import Look, Watching
from segserve_common.kube.kinds import PODS

PATH = "/api/v1/namespaces/lab/pods"


def pod(phase: str) -> dict[str, Any]:
    return {"metadata": {"name": "a", "namespace": "lab", "resourceVersion": "1"}, "status": {"phase": phase}}


def event(kind: str, item: Any) -> str:
    return json.dumps({"type": kind, "object": item}) + "\n"


class Server(FakeServer):
    """Every watch is answered with `sent`, as long as there is any."""

    sent: str = ""

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        found = self._list(request) or []
        if "watch" not in request.url.params:
            return httpx2.Response(200, json={"items": found, "metadata": {"resourceVersion": "1"}})
        return httpx2.Response(200, text=self.sent) if self.sent else self._watch(found)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(watching, "RETRY_S", 0.1)
    found = Server()
    found.put("api/v1/pods", pod("Pending"))
    found.answers["GET", PATH] = found.answer
    return found


def trouble_of(seen: Watching) -> str:
    version = 0
    while not (trouble := seen.trouble):
        version = seen.wait(version, 60)
    return trouble


def wait_for_phase(seen: Watching, phase: str) -> None:
    version = 0
    while [each["status"]["phase"] for each in seen.all(PODS)] != [phase]:
        version = seen.wait(version, 60)


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
    with Watching(server.calls(), [Look(PODS)]) as seen:
        assert "http://api.test" in trouble_of(seen)

        server.sent = ""
        server.put("api/v1/pods", pod("Running"))
        wait_for_phase(seen, "Running")


def test_a_watch_whose_version_is_too_old_begins_anew_without_a_word(server: Server) -> None:
    with Watching(server.calls(), [Look(PODS)]) as seen:
        server.sent = event("ERROR", {"code": 410, "reason": "Expired", "message": "too old resource version"})
        server.put("api/v1/pods", pod("Running"))
        wait_for_phase(seen, "Running")

        assert not seen.trouble


@pytest.mark.parametrize("listed", ["null", "[]", "{}", '{"items": []}'])
def test_a_list_that_is_none_is_said_and_asked_for_again(server: Server, listed: str) -> None:
    with Watching(server.calls(), [Look(PODS)]) as seen:
        server.answers["GET", PATH] = lambda _: httpx2.Response(200, text=listed)
        assert "http://api.test" in trouble_of(seen)

        server.answers["GET", PATH] = server.answer
        server.put("api/v1/pods", pod("Running"))
        wait_for_phase(seen, "Running")
