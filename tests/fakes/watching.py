"""A running platform as its files, processes and shared memory show it."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest

from bench.platform import TIMEOUT, WAITING, Running
from fakes.waiting import until
from segserve_builder.render.tritonserver import shm_regions
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.leftovers import shm_prefix
from segserve_operator.adapters.local.resource_files import ResourceNotFoundError
from segserve_operator.adapters.local.store import LocalStore
from segserve_platform.cli.app import main


def segserve(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line on the platform of a state folder, whatever it exits with."""
    return subprocess.run(
        [sys.executable, "-m", "segserve_platform.cli", *arguments],
        env=environ | {"SEGSERVE_STATE": str(state), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def command(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line like `segserve`, in this process: it costs a second to start another one."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(environ, {"SEGSERVE_STATE": str(state), "COLUMNS": "200"}),
        patch.object(sys, "argv", ["segserve", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    code = ended.value.code
    return subprocess.CompletedProcess(arguments, code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Watched:
    """What can be seen of one platform."""

    running: Running

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.running.state)

    def command(self, *arguments: str) -> str:
        """Run a command on it in this process, and return its output; AssertionError where it fails."""
        patience = ("--timeout", TIMEOUT) if arguments[0] in WAITING else ()
        done = command(self.running.state, *arguments, *patience)
        assert done.returncode == 0, f"segserve {' '.join(arguments)}: {done.stderr or done.stdout}"
        return done.stdout

    def manifest(self, model: str) -> dict[str, Any]:
        return LocalStore(self.state).get("SegmentationModel", model)

    def exists(self, model: str) -> bool:
        try:
            return bool(self.manifest(model))
        except ResourceNotFoundError:
            return False

    def condition(self, model: str, kind: str) -> dict[str, Any]:
        """Return a condition, empty where the status does not speak of the newest spec yet."""
        manifest = self.manifest(model)
        conditions = (manifest.get("status") or {}).get("conditions", ())
        found = next((found for found in conditions if found["type"] == kind), {})
        return found if found.get("observedGeneration") == manifest["metadata"]["generation"] else {}

    def becomes(self, model: str, kind: str, status: str, reason: str) -> dict[str, Any]:
        """Return a condition once it has that status and reason."""

        def reached() -> dict[str, Any] | None:
            found = self.condition(model, kind)
            return found if (found.get("status"), found.get("reason")) == (status, reason) else None

        try:
            return until(reached, f"{kind} {status} {reason}")
        except AssertionError as error:
            raise AssertionError(f"{error}; seen: {self.manifest(model).get('status')}") from None

    def role(self, model: str, role: str) -> tuple[str, str] | None:
        """Return the revision that has a role, and the group that holds it."""
        holder = (self.manifest(model).get("status") or {}).get("roles", {}).get(role)
        return (holder["revision"], holder["group"]) if holder else None

    def groups(self) -> set[str]:
        return {path.name for path in self.state.groups.iterdir()}

    def process(self, record: str) -> psutil.Process | None:
        """Return the living process of a record such as `groups/main/triton` or `gateway/envoy`."""
        found = processes.read_record(self.running.state / f"{record}.process.json")
        return psutil.Process(found.pid) if found is not None and processes.is_alive(found) else None

    def supervisor(self) -> psutil.Process:
        from segserve_operator.adapters.local.files import read_platform

        record = until(lambda: read_platform(self.state), "a supervisor")
        return psutil.Process(record.process.pid)

    def steps(self, group: str = "main") -> dict[str, psutil.Process]:
        """Return the processes of the first instances of a group's Python steps by the step's name."""
        first = "_0_0"
        found = self.instances(group).items()
        return {name.removesuffix(first): process for name, process in found if name.endswith(first)}

    def instances(self, group: str = "main") -> dict[str, psutil.Process]:
        """Return the processes of a group's Python steps by the instance's name."""
        found = {}
        for child in self.process(f"groups/{group}/triton").children():
            with contextlib.suppress(psutil.Error):
                words = child.cmdline()
                step = next((Path(word).parents[1].name for word in words if word.endswith("/1/model.py")), "/")
                found |= {word: child for word in words if word.startswith(f"{step}_")}
        return found

    def shm(self, group: str) -> tuple[str, ...]:
        return shm_regions(shm_prefix(self.state, group))
