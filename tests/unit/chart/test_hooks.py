"""The scripts of the chart's hooks, run as pods run them, against servers that answer as an API server does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .conftest import Render, of_kind, the
from .test_chart import SETS


class Server(ThreadingHTTPServer):
    """Answers with what it was given, the last of it again and again, and keeps what it was sent."""

    def __init__(self, answers: list[tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        answers = self.server.answers
        status, text = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_PATCH = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    started: list[tuple[Server, threading.Thread]] = []

    def start(*answers: tuple[int, str]) -> Server:
        server = Server(list(answers))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_test_passes_once_everything_answers(serve: Callable[..., Server], render: Render) -> None:
    operator, gateway = serve((503, "starting"), (200, "")), serve((200, ""))
    done = run(asking(render)["args"], "10", operator.url + "/healthz", gateway.url + "/v2/health/ready")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [seen[1] for seen in operator.seen] == ["/healthz", "/healthz"]


def test_the_test_fails_and_tells_of_each_that_does_not_answer(serve: Callable[..., Server], render: Render) -> None:
    well, ill = serve((200, "")), serve((503, "no server"))
    done = run(asking(render)["args"], "0", ill.url, "http://127.0.0.1:1/", well.url)
    assert done.returncode == 1
    told = done.stdout.splitlines()
    assert "503" in told[0]
    assert "refused" in told[1]
    assert told[2].endswith(": ok")


def test_the_test_asks_the_operator_and_the_gateway_of_a_pool_that_the_chart_makes(render: Render) -> None:
    assert asking(render)["args"][1:] == ["120", "http://segserve.vision.svc:8012/healthz"]
    assert asking(render, SETS["pool"])["args"][1:] == [
        "120",
        "http://segserve.vision.svc:8012/healthz",
        "http://segserve-default.vision.svc:9000/v2/health/ready",
    ]


def test_the_pool_is_applied_once_its_definition_is_served(
    serve: Callable[..., Server], render: Render, tmp_path: Path
) -> None:
    api = serve((404, "404 page not found"), (503, ""), (201, "{}"))
    arguments = pool_arguments(render)
    done = run(arguments, *arguments[1:], account=tmp_path, server=api.url)
    assert done.returncode == 0, done.stdout + done.stderr
    method, path, headers, body = api.seen[-1]
    assert (method, len(api.seen)) == ("PATCH", 3)
    assert path.startswith("/apis/segserve.dev/v1alpha1/namespaces/vision/tritonpools/default?")
    assert {"force=true", "fieldManager=helm-pool"} < set(path.partition("?")[2].split("&"))
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    assert headers["Authorization"] == "Bearer a token"
    pool = json.loads(body)
    assert pool["kind"] == "TritonPool"
    assert pool["spec"] == SETS["pool"]["pool"]["spec"]


def test_a_refused_pool_is_told_in_the_words_of_the_api_server(
    serve: Callable[..., Server], render: Render, tmp_path: Path
) -> None:
    api = serve((422, json.dumps({"kind": "Status", "message": "spec.replicas: Invalid value: -1"})))
    arguments = pool_arguments(render)
    done = run(arguments, *arguments[1:], account=tmp_path, server=api.url)
    assert done.returncode == 1
    assert "422 spec.replicas: Invalid value: -1" in done.stdout
    assert len(api.seen) == 1


def test_the_pool_is_no_object_of_the_release(render: Render) -> None:
    """Helm would have to send it before its kind is there, and would delete it with the release."""
    objects = render(SETS["pool"])
    assert not of_kind(objects, "TritonPool")
    annotations = the(objects, "Job")["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "post-install,post-upgrade,post-rollback"


def run(
    arguments: list[str], *told: str, account: Path | None = None, server: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "SERVER": server}
    if account is not None:
        (account / "token").write_text("a token")
        environment["ACCOUNT"] = str(account)
    command = [sys.executable, "-I", "-c", arguments[0], *told]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def asking(render: Render, values: dict[str, Any] | None = None) -> dict[str, Any]:
    (container,) = the(render(values), "Pod")["spec"]["containers"]
    return container


def pool_arguments(render: Render) -> list[str]:
    (container,) = the(render(SETS["pool"]), "Job")["spec"]["template"]["spec"]["containers"]
    return container["args"]
