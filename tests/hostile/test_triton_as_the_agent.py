"""Somebody runs code in Triton, through a network of a tenant: he is not the agent, and has none of its credentials."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from fakes.pools import FULL, MINIMAL, pool_context, with_defaults
from fakes.waiting import HANG_S
from segserve_builder.agent import secret
from segserve_builder.cluster import triton
from segserve_builder.cluster.triton import LauncherLink, LinkedProcesses, _address
from segserve_builder.errors import ServerSlowError
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.kube.objects import group_objects, main_group

SHARED: Final = {"run", "cache"}
"""The folder of repository, log and secret, and the downloads, which Triton only reads."""


@pytest.fixture(params=[MINIMAL, FULL], ids=["minimal", "full"])
def pod(request: pytest.FixtureRequest) -> dict[str, Any]:
    context = pool_context(request.param)
    *_, deployment = group_objects(context, main_group(context), 1)
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in pod["containers"] if each["name"] == name)
    return dict(found)


def mounts(pod: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return {mount["name"]: mount for mount in container(pod, name)["volumeMounts"]}


def test_he_does_not_see_the_agents_processes_and_so_not_their_files(pod: dict[str, Any]) -> None:
    """With a shared PID namespace /proc/<agent>/root leads to its token and its Secrets."""
    assert "shareProcessNamespace" not in pod


def test_he_is_another_user_who_shares_only_a_group(pod: dict[str, Any]) -> None:
    own = pod["securityContext"]

    assert container(pod, "triton")["securityContext"]["runAsUser"] not in (0, own["runAsUser"])
    assert "runAsUser" not in container(pod, "agent")["securityContext"]
    assert own["runAsGroup"] == own["fsGroup"]


def test_where_the_cluster_chooses_the_user_he_still_sees_no_process() -> None:
    context = with_defaults(pool_context(MINIMAL), pod_user=None)
    *_, deployment = group_objects(context, main_group(context), 1)
    spec = deployment["spec"]["template"]["spec"]

    assert "shareProcessNamespace" not in spec
    assert "runAsUser" not in json.dumps(spec)


def test_he_has_no_folder_with_the_agents_credentials_state_or_home(pod: dict[str, Any]) -> None:
    """The agent's HOME was Triton's /tmp: Python runs what it finds in site-packages below it."""
    triton, agent = mounts(pod, "triton"), mounts(pod, "agent")

    assert triton.keys() & agent.keys() == SHARED
    assert triton["cache"]["readOnly"]
    (home,) = (each["value"] for each in container(pod, "agent")["env"] if each["name"] == "HOME")
    (state,) = (each["value"] for each in container(pod, "agent")["env"] if each["name"] == "SEGSERVE_AGENT_FOLDER")
    private = {mount["mountPath"] for name, mount in agent.items() if name not in SHARED}
    assert {home, state} <= private


def test_the_secret_of_tritons_management_is_for_its_user_and_group_alone(tmp_path: Path) -> None:
    found = secret.obtain(tmp_path / "secret")

    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o440
    assert secret.obtain(tmp_path / "secret") == found


@pytest.fixture
def link(tmp_path: Path) -> Iterator[LauncherLink]:
    """A launcher whose Triton is this very process."""
    record = tmp_path / "triton.process.json"
    record.write_text(ProcessRecord.of(os.getpid()).to_json())
    made = LauncherLink(tmp_path, record)
    yield made
    made.close()


def test_the_agent_learns_what_it_saw_before(link: LauncherLink, tmp_path: Path) -> None:
    processes = LinkedProcesses(tmp_path)

    assert processes.server_runs() is True
    assert processes.short_of({"a-step-that-has-no-process": 1}) == {"a-step-that-has-no-process"}
    assert processes.short_of({}) == frozenset()
    assert (processes.resident_bytes() or 0) > 2**20


def test_the_agent_learns_what_the_processes_use(link: LauncherLink, tmp_path: Path) -> None:
    found = LinkedProcesses(tmp_path).uses()

    server = {key: use for key, use in found.processes.items() if key != "launcher"}
    assert {use.step for use in server.values()} == {""}
    # A child of this process that ends meanwhile has no memory any more.
    (own,) = (use for key, use in server.items() if key.startswith(f"{os.getpid()}@"))
    assert own.memory_bytes > 2**20
    assert "launcher" in found.processes
    assert found.look_cpu_s > 0


def test_of_a_launcher_that_ended_nothing_is_known(
    link: LauncherLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "START_S", 0.0)
    link.close()

    assert LinkedProcesses(tmp_path).uses() is None
    with pytest.raises(ServerSlowError, match="how many GPUs"):
        LinkedProcesses(tmp_path).gpu_count()


def test_the_agent_waits_for_a_launcher_that_starts_later_to_learn_of_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "gpu_count", lambda: 2)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(LinkedProcesses(tmp_path).gpu_count)
        link = LauncherLink(tmp_path, tmp_path / "triton.process.json")
        try:
            assert asked.result(HANG_S) == 2
        finally:
            link.close()


def test_a_launcher_that_ended_has_no_server(link: LauncherLink, tmp_path: Path) -> None:
    processes = LinkedProcesses(tmp_path)
    link.close()

    assert processes.server_runs() is False
    assert processes.short_of({"net": 1}) == frozenset()
    assert processes.resident_bytes() is None


@pytest.mark.parametrize(
    "question",
    [b"", b"\n", b"[]\n", b"{}\n", b'{"needed": 7}\n', b'{"needed": {"a": "b"}}\n', b"[" * 100_000 + b"\n", b"\xff\n"],
)
def test_questions_that_nobody_asks_do_not_end_the_launcher(
    question: bytes, link: LauncherLink, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.connect(_address(tmp_path))
        stranger.sendall(question)
        stranger.shutdown(socket.SHUT_WR)
        stranger.recv(1000)

    assert LinkedProcesses(tmp_path).server_runs() is True


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]\n",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b'{"serverRuns": true, "short": 3, "deaths": []}\n',
        b'{"short": [], "deaths": {"net": [1]}}\n',
        b'{"short": ["elsewhere"], "deaths": {"elsewhere": [1, "x"]}, "residentBytes": "many"}\n',
    ],
)
def test_a_triton_that_lies_about_its_processes_does_not_end_the_agent(answer: bytes, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as squatter:
        squatter.bind(_address(tmp_path))
        squatter.listen()

        def lie() -> None:
            for _ in range(3):
                with squatter.accept()[0] as connection, connection.makefile("rb") as stream:
                    stream.readline()
                    connection.sendall(answer)

        liar = threading.Thread(target=lie)
        liar.start()
        processes = LinkedProcesses(tmp_path)
        assert processes.short_of({"net": 1}) == frozenset()
        assert processes.resident_bytes() is None
        assert processes.server_runs() in (None, True)
        liar.join()
    assert processes.deaths == {}
