"""`segserve doctor` on this machine: each thing is broken for real, and what it says mends it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Checks = dict[str, dict[str, Any]]
ENTRY = [sys.executable, "-m", "segserve_platform.cli", "doctor", "-o", "json"]


def from_shell(tmp_path: Path, before: str) -> Checks:
    """Ask the doctor in a shell that has run a line before."""
    home = {"HOME": str(tmp_path), "SEGSERVE_STATE": str(tmp_path / "state"), "SEGSERVE_CACHE": str(tmp_path / "cache")}
    shell = subprocess.run(
        ["bash", "-c", f'{before} && exec "$@"', "bash", *ENTRY],
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return (
        {check["what"]: check for check in json.loads(shell.stdout)} if shell.stdout else {"": {"seen": shell.stderr}}
    )


def test_limits_of_the_shell_are_told_with_what_mends_them(tmp_path: Path) -> None:
    limits = "ulimit -Sn 256 && ulimit -Sv 8000000"

    found = from_shell(tmp_path, limits)

    seen = {what: check["seen"] for what, check in found.items() if not check["good"]}
    assert seen["memory"] == "processes may map 7.6 GiB (ulimit -v)"
    assert seen["open files"] == "at most 256 (ulimit -n)"
    again = from_shell(tmp_path, f"{limits} && {found['open files']['fix']} && {found['memory']['fix']}")
    assert all(again[what]["good"] for what in seen)


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
