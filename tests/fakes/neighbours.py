"""Programs of others beside segserve, from Go's modules, and what they define on a cluster."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fakes.cluster import Cluster
from fakes.waiting import HANG_S

HERE: Final = Path(__file__).parents[1] / "e2e/cluster/neighbours"
"""A folder for each program, with the versions of its modules."""
GO: Final = {"GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto"}
"""Variables of Go: a program that needs a newer Go than this machine's gets it."""


def build(name: str, program: Path, package: str = ".") -> Path:
    """Build the program of a folder, its own or that of a module; Go keeps what it has compiled."""
    subprocess.run(["go", "build", "-o", str(program), package], cwd=HERE / name, env=os.environ | GO, check=True)
    return program


def folder_of(name: str, module: str) -> Path:
    """Return where a module's files are that the program of a folder is built from; fetches them where they are not."""
    command = ["go", "mod", "download", "-json", module]
    return Path(json.loads(subprocess.check_output(command, cwd=HERE / name, env=os.environ | GO))["Dir"])


@contextmanager
def definitions(cluster: Cluster, name: str, module: str, *files: str, kinds: str) -> Iterator[None]:
    """Have the custom resources of a module's files on the cluster for the time of the block; `kinds` are some."""
    folder = folder_of(name, module)
    named = [word for file in files for word in ("-f", str(folder / file))]
    cluster.kubectl("apply", "--server-side", *named)
    try:
        # Of an empty list kubectl prints nothing.
        cluster.wait(f"{kinds} are served", lambda: [cluster.kubectl("get", kinds, "-A")])
        yield
    finally:
        cluster.kubectl("delete", "--wait=false", *named)


@contextmanager
def running(
    command: Sequence[object], log: Path, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the time of the block; it gets a file for its output, and may get variables."""
    environment = os.environ | (variables or {})
    with log.open("wb") as file, subprocess.Popen(
        list(map(str, command)), stdout=file, stderr=file, env=environment
    ) as process:  # fmt: skip
        try:
            yield process
            assert process.poll() is None, f"{command[0]} has ended: {log.read_text()[-3000:]}"
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(HANG_S)
            process.kill()
