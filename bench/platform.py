"""A local platform for one measurement, with its own state folder and port; it is always stopped at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from bench.ports import free_port
from segserve_operator.adapters.local import processes

ROOT: Final = Path(__file__).parent.parent
MODELS: Final = ROOT / "examples/coins/model.yaml"
WAITING: Final = ("up", "wait", "delete")
TIMEOUT: Final = "300s"
"""Of these commands, whose defaults are too short on a machine that is busy with something else."""
LAST_LINES: Final = 40
KINDS: Final = {
    "pre": "segserve--pre",
    "network": "segserve--net",
    "post": "segserve--post",
    "pipeline": "segserve--pipeline",
    "agent": "segserve_builder.agent",
    "Triton": "tritonserver",
    "Envoy": "envoy",
    "supervisor": "local_platform",
}


@dataclass(frozen=True, slots=True)
class Running:
    """A running platform: the URL for clients, and its state folder."""

    url: str
    state: Path

    def segserve(self, *arguments: str) -> str:
        """Run a `segserve` command on it, and return its output."""
        return _segserve(self.state, *arguments)

    def processes(self) -> list[psutil.Process]:
        """Return all its processes: supervisor, servers, agents, steps and gateway."""
        return processes.marked_processes(self.state)

    def memory_by_kind_mib(self) -> dict[str, float]:
        """Return the proportional set size of its processes in MiB, by kind."""
        by_kind_mib: dict[str, float] = {}
        for process in self.processes():
            try:
                words = " ".join(process.cmdline())
                size = process.memory_full_info().pss / 2**20
            except psutil.Error:
                continue
            kind = next((kind for kind, part in KINDS.items() if part in words), "other")
            by_kind_mib[kind] = by_kind_mib.get(kind, 0.0) + size
        return {kind: round(size, 1) for kind, size in sorted(by_kind_mib.items())}

    def memory_mib(self) -> float:
        """Return the sum of the proportional set sizes of its processes in MiB."""
        return sum(self.memory_by_kind_mib().values())


@contextmanager
def platform(*files: Path) -> Iterator[Running]:
    """Run a platform with the resources of some files for the duration of the block."""
    # Not in the folder of a test: the path of Envoy's admin socket must be short.
    state = Path(tempfile.mkdtemp(prefix="segserve-"))
    port = free_port()
    arguments = [argument for file in files for argument in ("-f", str(file))]
    try:
        _segserve(state, "up", "--detach", "--port", str(port), *arguments)
        yield Running(f"http://127.0.0.1:{port}", state)
    finally:
        _segserve(state, "down")
        shutil.rmtree(state, ignore_errors=True)


def _segserve(state: Path, *arguments: str) -> str:
    patience = ("--timeout", TIMEOUT) if arguments[0] in WAITING and "--timeout" not in " ".join(arguments) else ()
    done = subprocess.run(
        [sys.executable, "-m", "segserve_platform.cli", *arguments, *patience],
        env=os.environ | {"SEGSERVE_STATE": str(state)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = f"segserve {' '.join(arguments)} failed: {done.stderr.strip() or done.stdout.strip()}"
        raise RuntimeError("\n".join([said, *(_remains(state) if arguments[0] in WAITING else ())]))
    return done.stdout


def _remains(state: Path) -> Iterator[str]:
    """Yield what a platform that does not get ready has written last, and where its steps are, if gdb is there.

    Both are gone once somebody looks.
    """
    for path in (state / "segserve.log", *sorted(state.glob("groups/*/*.log")), *sorted(state.glob("groups/*/*.json"))):
        with suppress(OSError):
            yield f"--- {path.relative_to(state)}"
            yield from path.read_text(errors="replace").splitlines()[-LAST_LINES:]
    for process in processes.marked_processes(state):
        with suppress(psutil.Error, OSError, subprocess.TimeoutExpired):
            command = " ".join(process.cmdline())
            if "triton_python_backend_stub" in command:
                yield f"--- {command}: {process.status()}, {sum(process.cpu_times()[:2]):.1f} s of CPU"
                look = ["gdb", "--batch", "--nx", "-p", str(process.pid), "-ex", "thread apply all bt 15"]
                seen = subprocess.run(look, capture_output=True, text=True, check=False, timeout=30)
                yield from seen.stdout.splitlines()[-4 * LAST_LINES :]
