"""The platform of this machine against the other processes, users and web pages of the machine, on the real Triton."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.platform import MODELS, platform
from fakes.callers import COIN_PIXELS, PHOTO
from fakes.server_pod import status_of
from fakes.waiting import HANG_S, until
from fakes.watching import Watched
from segserve import Client
from segserve_builder.agent import secret
from segserve_builder.agent.server import TritonError, TritonRefusedError, TritonServer
from segserve_operator.adapters.local.files import PlatformError, StateFolder, StateFolderError
from segserve_operator.adapters.local.fleet import GroupFolder
from segserve_operator.adapters.local.store import LocalStore

CODE = """
open({proof!r}, "w").write("ran")
class TritonPythonModel:
    def execute(self, requests):
        return []
"""
WEB_PAGE = {"Content-Type": "text/plain", "Origin": "https://evil.example"}
LOCAL_USER = {"Content-Type": "application/json"}


OTHER_USER = """
import os, select, sys
os.setgroups([]), os.setgid(65534), os.setuid(65534)
seen = set()
while not select.select([sys.stdin], [], [], 0.02)[0]:
    for path in (f"/proc/{pid}/{name}" for pid in os.listdir("/proc") for name in ("cmdline", "environ")):
        try:
            with open(path, "rb") as file:
                seen.add(file.read())
        except OSError:
            pass
sys.stdout.buffer.write(b"\\n".join(seen))
"""


@pytest.fixture(scope="module")
def other_user() -> Iterator[subprocess.Popen[bytes] | None]:
    """A process of another user that reads what it can of all processes until its input has something."""
    if os.getuid() != 0:
        yield None
        return
    argv = [sys.executable, "-I", "-S", "-c", OTHER_USER]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        yield reader
        reader.kill()


@pytest.fixture(scope="module")
def coins(other_user: object) -> Iterator[Watched]:
    with platform(MODELS) as running:
        yield Watched(running)


def group_of(watched: Watched) -> GroupFolder:
    return GroupFolder(watched.state.groups / "main")


def ask(watched: Watched, path: str, headers: dict[str, str], body: bytes | None) -> int:
    """Return the status of what the server itself answers, past the gateway."""
    ports = json.loads(group_of(watched).ports.read_text())
    method = "GET" if body is None else "POST"
    return status_of(f"http://127.0.0.1:{ports['http']}{path}", method, headers, body)


def model_with_code(proof: Path) -> bytes:
    """Return the body of a request to load a model whose code writes a file."""
    tensor = {"data_type": "TYPE_FP32", "dims": [1]}
    config = {"backend": "python", "input": [{"name": "A", **tensor}], "output": [{"name": "B", **tensor}]}
    code = base64.b64encode(CODE.format(proof=str(proof)).encode()).decode()
    return json.dumps({"parameters": {"config": json.dumps(config), "file:1/model.py": code}}).encode()


@pytest.mark.platform
@pytest.mark.core
@pytest.mark.parametrize("headers", [WEB_PAGE, LOCAL_USER, {**LOCAL_USER, secret.KEY: "guess"}],
                         ids=["a web page", "another process", "a guess"])  # fmt: skip
def test_code_is_not_run_by_a_stranger_who_loads_a_model_into_the_local_server(
    coins: Watched, tmp_path: Path, headers: dict[str, str]
) -> None:
    proof = tmp_path / "proof"

    assert ask(coins, "/v2/repository/models/evil/load", headers, model_with_code(proof)) == 403

    assert not proof.exists()


@pytest.mark.platform
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/repository/index", b"{}"),
        ("/v2/repository/models/coins/unload", b"{}"),
        ("/v2/systemsharedmemory/region/x/register", b'{"key": "/x", "offset": 0, "byte_size": 1}'),
        ("/v2/logging", b'{"log_file": "/tmp/x"}'),
        ("/v2/trace/setting", b'{"trace_file": ["/tmp/x"]}'),
    ],
)
def test_a_web_page_manages_nothing_of_the_local_server(coins: Watched, path: str, body: bytes) -> None:
    assert ask(coins, path, WEB_PAGE, body) == 403


@pytest.mark.platform
@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 421), ("evil.example:8080", 421), ("localhost.evil.example", 421), ("localhost:9", 200)],
)
def test_a_web_page_whose_name_leads_to_the_local_gateway_reads_nothing(coins: Watched, host: str, status: int) -> None:
    for path in ("/metrics", "/v2/models/coins", "/openapi.json"):
        assert status_of(f"{coins.running.url}{path}", "GET", {"Host": host}, None) == status


@pytest.mark.platform
def test_grpc_manages_the_local_server_only_with_the_word(coins: Watched) -> None:
    group = group_of(coins)
    port = json.loads(group.ports.read_text())["grpc"]
    stranger, agent = TritonServer(port), TritonServer(port, group.secret)

    for call in (stranger.states, lambda: stranger.unload("coins")):
        with pytest.raises(TritonRefusedError, match="restricted"):
            call()

    assert agent.states()["coins"] == "READY"
    stranger.close()
    agent.close()


@pytest.mark.platform
def test_a_new_supervisor_finds_the_word_again_and_replaces_a_server_that_has_none(coins: Watched) -> None:
    group, running = group_of(coins), coins.running
    word, server = secret.obtain(group.secret), coins.process("groups/main/triton")

    restart(coins)
    assert (secret.obtain(group.secret), coins.process("groups/main/triton")) == (word, server)

    end_supervisor(coins)
    group.secret.unlink()
    running.segserve("up", "--detach")
    until(lambda: group.secret.exists() and coins.process("groups/main/triton") not in (None, server), "a new server")
    running.segserve("wait", "coins", "--timeout", f"{HANG_S:g}s")

    assert "its secret is lost" in running.segserve("logs", "--tail", "200")
    with Client(running.url, timeout_s=HANG_S) as client:
        assert client.segment(PHOTO, model="coins").areas["coin"] in COIN_PIXELS


def restart(watched: Watched) -> None:
    end_supervisor(watched)
    watched.running.segserve("up", "--detach")


def end_supervisor(watched: Watched) -> None:
    former = watched.supervisor()
    former.terminate()
    former.wait(HANG_S)


@pytest.mark.platform
def test_another_user_reads_no_word_while_servers_start_restart_and_end(
    coins: Watched, other_user: subprocess.Popen[bytes] | None, tmp_path: Path
) -> None:
    if other_user is None:
        pytest.skip("only root starts a process of another user")
    group, server, former = group_of(coins), coins.process("groups/main/triton"), tmp_path / "former"
    former.write_text(group.secret.read_text())
    assert stat.S_IMODE(group.secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(coins.state.root.stat().st_mode) == 0o700

    server.kill()
    until(lambda: coins.process("groups/main/triton") not in (None, server), "another server")
    port = json.loads(group.ports.read_text())["grpc"]
    until(lambda: state_of_coins(port, group.secret) == "READY", "the agent has loaded the model with the new word")
    assert "restricted" in state_of_coins(port, former)
    words = [former.read_bytes(), group.secret.read_bytes()]
    coins.running.segserve("down")
    seen, _ = other_user.communicate(b"end", HANG_S)

    own = [line for line in seen.splitlines() if str(coins.state.groups).encode() in line]
    assert any(b"/tritonserver" in line for line in own)
    assert not [line for line in own if b"restricted-api=" in line]
    assert not [word for word in words if word in seen]


def state_of_coins(port: int, secret_file: Path) -> str:
    """Return the state of the model, or the error of the server."""
    server = TritonServer(port, secret_file)
    try:
        return server.states().get("coins", "")
    except TritonError as error:
        return str(error)
    finally:
        server.close()


def test_a_state_folder_that_others_can_read_is_narrowed(tmp_path: Path) -> None:
    root = tmp_path / "state"
    root.mkdir(mode=0o755)
    root.chmod(0o755)

    with LocalStore(StateFolder(root))._locked():
        assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_new_state_folder_is_of_its_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        StateFolder(tmp_path / "a/state").create()
    finally:
        os.umask(former)

    assert stat.S_IMODE((tmp_path / "a/state").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("found", "said"), [(None, "it has no format"), ("2\n", "its format is 2")], ids=["no number", "another number"]
)
def test_a_state_folder_of_another_format_is_refused_with_what_to_do(
    tmp_path: Path, found: str | None, said: str
) -> None:
    state = StateFolder(tmp_path / "state")
    state.create()
    state.create()
    state.objects.mkdir()
    state.format.unlink()
    if found is not None:
        state.format.write_text(found)

    with pytest.raises(PlatformError, match=f"{said}, .*`segserve down --forget` removes it"):
        state.create()


def test_a_folder_that_all_users_share_is_no_state_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)

    with pytest.raises(StateFolderError, match="all users share it; set SEGSERVE_STATE to a folder of your own"):
        StateFolder(tmp_path).create()

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777
