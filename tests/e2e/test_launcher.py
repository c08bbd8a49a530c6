"""The launcher of a server pod, with the real Triton: who may ask it what, and how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.agent_group import wait_for
from fakes.server_pod import ServerPod
from fakes.waiting import HANG_S
from segserve_builder.agent import secret
from segserve_builder.agent.server import TritonRefusedError
from segserve_builder.cluster.triton import LinkedProcesses
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.runtime import ensure_runtime

pytestmark = [pytest.mark.platform, pytest.mark.core]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPod]:
    made = ServerPod(tmp_path_factory.mktemp("pod"), ensure_runtime(cache_folder()))
    yield made
    made.stop()


@pytest.fixture
def pod(shared: ServerPod) -> ServerPod:
    """The shared pod with a living server."""
    process = shared.processes.get("triton")
    if process is None or process.poll() is not None:
        shared.start("triton")
    wait_for(shared.is_live, shared.describe)
    return shared


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/coins/load"),
        ("POST", "/v2/repository/models/coins/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/trace/setting"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/logging"),
    ],
)
def test_management_over_http_needs_the_word(pod: ServerPod, method: str, path: str) -> None:
    body = b"{}" if method == "POST" else None
    assert pod.ask(method, path, body=body) == 403
    assert pod.ask(method, path, {secret.KEY: "guess"}, body) == 403
    assert pod.ask(method, path, {secret.KEY: pod.word}, body) != 403


def test_management_over_grpc_needs_the_word(pod: ServerPod) -> None:
    stranger = pod.server(knows_the_word=False)
    for ask in (stranger.states, lambda: stranger.load("coins"), lambda: stranger.unload("coins")):
        with pytest.raises(TritonRefusedError, match="restricted"):
            ask()
    stranger.close()
    own = pod.server()
    assert own.states() == {}
    own.close()


def test_health_metadata_and_inference_are_open_to_all(pod: ServerPod) -> None:
    assert pod.ask("GET", "/v2/health/ready") == 200
    assert pod.ask("GET", "/v2") == 200
    assert pod.ask("POST", "/v2/models/coins/infer", body=b"{}") in (400, 404)
    stranger = pod.server(knows_the_word=False)
    with pytest.raises(TritonRefusedError, match="unknown model"):
        stranger.infer("coins", b"", {}, 5.0)
    stranger.close()


def test_the_server_listens_on_loopback_unless_its_image_says_otherwise(pod: ServerPod) -> None:
    listening = [found for found in pod.triton.net_connections("inet") if found.status == "LISTEN"]
    assert {found.laddr.ip.removeprefix("::ffff:") for found in listening} == {"127.0.0.1"}
    assert {found.laddr.port for found in listening} == set(pod.ports[:3])


def test_a_killed_server_ends_its_container_and_the_next_one_knows_the_same_word(pod: ServerPod) -> None:
    word, first = pod.word, pod.triton
    first.kill()
    assert pod.processes["triton"].wait(HANG_S) == 128 + signal.SIGKILL
    started = pod.start("triton")
    wait_for(pod.is_live, pod.describe)
    assert (pod.triton.pid, pod.word) != (first.pid, "")
    assert pod.word == word
    assert started.poll() is None


def test_the_agent_ends_a_server_and_its_container_ends_with_it(pod: ServerPod) -> None:
    server, launcher = pod.triton, pod.processes["triton"]
    LinkedProcesses(pod.folder).end_server()
    assert launcher.wait(HANG_S) == 0
    assert not server.is_running()


def test_sigterm_ends_the_server_and_its_code_is_the_containers(pod: ServerPod) -> None:
    server, launcher = pod.triton, pod.processes["triton"]
    os.kill(launcher.pid, signal.SIGTERM)
    assert launcher.wait(HANG_S) == 0
    assert not server.is_running()


def test_sigterm_while_it_waits_after_a_crash_starts_no_server(pod: ServerPod, tmp_path: Path) -> None:
    other = ServerPod(tmp_path, pod.runtime)
    (tmp_path / "triton.process.json").write_text(ProcessRecord(1, 0, "").to_json())
    launcher = other.start("triton")
    try:
        wait_for(lambda: (tmp_path / "repository").is_dir(), other.describe)
        launcher.terminate()
        assert launcher.wait(HANG_S) == 0
        assert not (tmp_path / "triton.log").exists()
    finally:
        other.stop()
