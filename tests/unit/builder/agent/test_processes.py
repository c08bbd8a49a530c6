"""What the agent sees of the processes of a Triton's steps, on processes of the test's own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fakes.waiting import until
from segserve_builder.agent.processes import StepProcesses

# Like Triton, it does not wait for a step's process that has ended.
SERVER = """
import subprocess, sys
steps = [subprocess.Popen([sys.argv[1], step]) for step in sys.argv[2:]]
print(*(step.pid for step in steps), flush=True)
sys.stdin.read()
for step in steps:
    step.kill()
    step.wait()
"""


@dataclass(frozen=True)
class Server:
    record: Path
    steps: dict[str, int]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A process with one child each for the steps `net` and `post`, which ends when it is told to."""
    stub = tmp_path / "triton_python_backend_stub"
    stub.symlink_to(sys.executable)
    files = []
    for step in ("net", "post"):
        file = tmp_path / step / "1" / "model.py"
        file.parent.mkdir(parents=True)
        file.write_text("import signal\nsignal.pause()\n")
        files.append(str(file))
    command = [sys.executable, "-c", SERVER, str(stub), *files]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pids = map(int, process.stdout.readline().split())
        record = tmp_path / "triton.json"
        record.write_text(json.dumps({"pid": process.pid, "create_time": psutil.Process(process.pid).create_time()}))
        yield Server(record, dict(zip(("net", "post"), pids, strict=True)))
        process.stdin.close()


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, "killed by SIGKILL, as the system does when it is out of memory"),
        (signal.SIGSEGV, "ended by SIGSEGV"),
    ],
    ids=["killed", "crashed"],
)
def test_what_ended_a_steps_process_is_kept(server: Server, number: signal.Signals, cause: str) -> None:
    processes = StepProcesses(server.record)
    needed = {"net": 1, "post": 1}
    assert processes.short_of(needed) == frozenset()

    psutil.Process(server.steps["net"]).send_signal(number)
    until(lambda: psutil.Process(server.steps["net"]).status() == psutil.STATUS_ZOMBIE, "its end")

    assert processes.short_of(needed) == {"net"}
    assert {step: death.cause for step, death in processes.deaths.items()} == {"net": cause}
