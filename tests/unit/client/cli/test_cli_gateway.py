"""The way to a gateway: where its Service can be reached, else through kubectl, else told."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.kube_http import FakeServer
from segserve_platform.platforms.cluster.gateway import addresses, answers, gateway
from segserve_platform.platforms.errors import ControlError

from .conftest import MODELS, POOLS, model, pool

SERVICES = "api/v1/services"


def service(port: int = 8080, node_port: int = 30080, **status: Any) -> Any:
    ports = [{"port": port, "nodePort": node_port}]
    return {
        "metadata": {"name": "segserve-default"},
        "spec": {"clusterIP": "127.0.0.1", "ports": ports},
        "status": status,
    }


def test_a_load_balancer_is_likelier_than_the_clusters_address_than_a_node(server: FakeServer) -> None:
    known = [{"type": "InternalIP", "address": "10.0.0.7"}, {"type": "ExternalIP", "address": "8.0.0.7"}]
    server.answers["GET", "/api/v1/nodes"] = lambda _: _nodes(known)
    balanced = service(loadBalancer={"ingress": [{"hostname": "lb.example"}]})

    assert list(addresses(server.client(), balanced)) == [
        "http://lb.example:8080",
        "http://127.0.0.1:8080",
        "http://8.0.0.7:30080",
        "http://10.0.0.7:30080",
    ]


def _nodes(known: list[dict[str, str]]) -> Any:
    items = [{"metadata": {"name": "n"}, "status": {"addresses": known}}]
    return httpx.Response(200, json={"items": items, "metadata": {}})


class Triton(BaseHTTPRequestHandler):
    """Answers what it is as a Triton does."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2" else 404)
        self.end_headers()
        self.wfile.write(b'{"name": "triton"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listening() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Triton) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield listener.server_port
        listener.shutdown()
        thread.join()


def test_what_answers_as_a_gateway_is_taken(server: FakeServer, listening: int) -> None:
    server.put(SERVICES, service(listening))

    with gateway(server.client(), "default", []) as found:
        assert found == f"http://127.0.0.1:{listening}"
    assert not answers("http://127.0.0.1:1")


def written(folder: Path, script: str) -> Path:
    folder.mkdir()
    (folder / "kubectl").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "kubectl").chmod(0o755)
    return folder


def test_what_cannot_be_reached_is_forwarded_by_kubectl_and_ended_after(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(SERVICES, service(1, 1))
    script = f'echo "$@ $$" > {tmp_path}/asked; echo "Forwarding from 127.0.0.1:4321 -> 8080"; exec sleep 60'
    monkeypatch.setenv("PATH", f"{written(tmp_path / 'bin', script)}:{os.environ['PATH']}")

    with gateway(server.client(), "default", ["--context", "test"]) as url:
        assert url == "http://127.0.0.1:4321"
        *asked, pid = (tmp_path / "asked").read_text().split()
        assert asked[:3] == ["--context", "test", "port-forward"]
        assert asked[3:] == ["--address", "127.0.0.1", "service/segserve-default", ":1"]

    assert not Path(f"/proc/{pid}").exists()


def test_what_kubectl_says_is_passed_on(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.put(SERVICES, service(1, 1))
    folder = written(tmp_path / "bin", "echo 'error: pods is forbidden' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    with (
        pytest.raises(ControlError, match="service/segserve-default: error: pods is forbidden"),
        gateway(server.client(), "default", []),
    ):
        pass


def test_without_kubectl_the_command_is_told(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.put(SERVICES, service(1, 1))
    monkeypatch.setenv("PATH", str(tmp_path))

    with (
        pytest.raises(
            ControlError, match=r"kubectl -n lab port-forward service/segserve-default 8080:1`.*SEGSERVE_URL"
        ),
        gateway(server.client(), "default", []),
    ):
        pass


def test_a_pool_whose_gateway_is_not_there_yet_is_named(server: FakeServer) -> None:
    server.put(SERVICES)
    server.put(MODELS, model())
    server.put(POOLS, pool())

    with pytest.raises(ControlError, match="pool 'default' has no gateway yet"), server.platform().gateway("coins"):
        pass


def test_a_gateway_with_tls_is_asked_for_by_https_and_never_in_plain_text(
    server: FakeServer, listening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port is never forwarded either: a certificate would not have the name of this machine."""
    monkeypatch.delenv("SEGSERVE_CA_FILE", raising=False)
    secured = service(listening, listening)
    secured["spec"]["ports"][0]["appProtocol"] = "https"
    server.put(SERVICES, secured)
    server.answers["GET", "/api/v1/nodes"] = lambda _: _nodes([])

    assert list(addresses(server.client(), secured)) == [f"https://127.0.0.1:{listening}"]
    with (
        pytest.raises(ControlError, match=r"pool 'default' speaks TLS.*--url https://.*SEGSERVE_CA_FILE"),
        gateway(server.client(), "default", []),
    ):
        pass
