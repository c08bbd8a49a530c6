"""A local platform for one measurement: its own state folder and port, ended in any case."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from bench.ports import free_port
from segserve_operator.adapters.local import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parent.parent
MODELS: Final = ROOT / "examples/coins/model.yaml"
KINDS: Final = {
    "pre": "segserve--pre",
    "network": "segserve--net",
    "post": "segserve--post",
    "agent": "segserve_builder.agent",
    "Triton": "tritonserver",
    "Envoy": "envoy",
    "supervisor": "local_platform",
}


@dataclass(frozen=True, slots=True)
class Running:
    """A running platform: where clients call it, and where its state lies."""

    url: str
    state: Path

    def segserve(self, *arguments: str) -> str:
        """Run the command line on it and return what it printed."""
        return _segserve(self.state, *arguments)

    def processes(self) -> list[psutil.Process]:
        """Return all of its processes that carry its mark: supervisor, servers, agents, steps, gateway."""
        return processes.marked_processes(self.state)

    def memory_by_kind_mib(self) -> dict[str, float]:
        """Return its processes' proportional memory (PSS: what is shared counts once) by what they are."""
        found: dict[str, float] = {}
        for process in self.processes():
            try:
                words = " ".join(process.cmdline())
                size = process.memory_full_info().pss / 2**20
            except psutil.Error:
                continue
            kind = next((kind for kind, part in KINDS.items() if part in words), "other")
            found[kind] = found.get(kind, 0.0) + size
        return {kind: round(size, 1) for kind, size in sorted(found.items())}

    def memory_mib(self) -> float:
        """Return the sum of its processes' proportional memory."""
        return sum(self.memory_by_kind_mib().values())


@contextmanager
def platform(*files: Path) -> Iterator[Running]:
    """Serve the resources of some files for the time of the block."""
    # Not below a test's own folder: the path of Envoy's admin socket must stay short.
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
    done = subprocess.run(
        [sys.executable, "-m", "segserve.cli", *arguments],
        env=os.environ | {"SEGSERVE_STATE": str(state)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"segserve {' '.join(arguments)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
