"""What the agent sees of the processes of a Triton's steps, on processes of the test's own."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fakes.waiting import until
from segserve_builder.agent import processes as agent_processes
from segserve_builder.agent.processes import IDLE_CPU_S, IDLE_S, StepProcesses
from segserve_common.process_record import ProcessRecord

# Like Triton 2.51, it does not wait for a step's process that has ended; like Triton 26.04, it does when it is asked.
SERVER = """
import pathlib, subprocess, sys
def started(*command):
    process = subprocess.Popen(command)
    # The kernel says that the program runs a moment before it shows the command.
    while not pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes():
        pass
    return process
steps = [started(sys.argv[1], step) for step in sys.argv[2:]]
print(*(step.pid for step in steps), flush=True)
for line in sys.stdin:
    steps[0].wait()
    if line == "reload\\n":
        steps[0] = started(*steps[0].args)
    print("done", flush=True)
for step in steps:
    step.kill()
    step.wait()
"""


@dataclass(frozen=True)
class Server:
    record: Path
    steps: dict[str, int]
    process: subprocess.Popen[str]

    def ask(self, what: str) -> None:
        """Return once it has waited for the end of `net`, and has started it again if it is asked to "reload"."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A process with a child for the step `net`, which is idle, and one for `post`, which is busy."""
    stub = tmp_path / "triton_python_backend_stub"
    stub.symlink_to(sys.executable)
    files = []
    for step in ("net", "post"):
        file = tmp_path / step / "1" / "model.py"
        file.parent.mkdir(parents=True)
        file.write_text("import signal\nsignal.pause()\n" if step == "net" else "while True: pass\n")
        files.append(str(file))
    command = [sys.executable, "-c", SERVER, str(stub), *files]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pids = map(int, process.stdout.readline().split())
        record = tmp_path / "triton.json"
        record.write_text(ProcessRecord.of(process.pid).to_json())
        yield Server(record, dict(zip(("net", "post"), pids, strict=True)), process)
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


@pytest.mark.parametrize(
    ("asked", "short", "causes"),
    [("remove", {"net"}, {"net": "Triton removed the process before its cause was read"}), ("reload", set(), {})],
)
def test_a_process_that_its_server_removed_has_died_unless_it_was_loaded_again(
    server: Server, asked: str, short: set[str], causes: dict[str, str]
) -> None:
    processes = StepProcesses(server.record)
    needed = {"net": 1, "post": 1}
    assert processes.short_of(needed) == frozenset()

    psutil.Process(server.steps["net"]).kill()
    server.ask(asked)

    assert processes.short_of(needed) == short
    assert {step: death.cause for step, death in processes.deaths.items()} == causes


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(agent_processes, "time", made)
    return made


@pytest.fixture
def instances(tmp_path: Path) -> Iterator[Callable[[int], list[psutil.Process]]]:
    """Starts so many processes of the step `net`, which are idle, as this process's children."""
    stub, file = tmp_path / "triton_python_backend_stub", tmp_path / "net/1/model.py"
    stub.symlink_to(sys.executable)
    file.parent.mkdir(parents=True)
    file.write_text("import signal\nsignal.pause()\n")
    (tmp_path / "triton.json").write_text(ProcessRecord.of(os.getpid()).to_json())
    started: list[subprocess.Popen[bytes]] = []

    def start(count: int) -> list[psutil.Process]:
        time.sleep(0.02)  # the kernel counts hundredths of a second
        made = [subprocess.Popen([stub, file]) for _ in range(count)]
        started.extend(made)
        found = [psutil.Process(each.pid) for each in made]
        until(lambda: all(each.cmdline() for each in found), "their commands")
        return found

    yield start
    for each in started:
        each.kill()
        each.wait()


def test_processes_that_a_repair_left_behind_count_for_nothing_and_are_ended_once_they_are_idle(
    instances: Callable[[int], list[psutil.Process]], tmp_path: Path, clock: Clock
) -> None:
    """Triton 2.51 does not end the other instances of a step that it loads again after one has died."""
    processes, needed = StepProcesses(tmp_path / "triton.json"), {"net": 3}
    first = instances(3)
    assert processes.short_of(needed) == frozenset()
    first[0].kill()
    until(lambda: not _lives(first[0]), "its end")
    assert processes.short_of(needed) == {"net"}
    clock.now_s = 2 * IDLE_S
    assert processes.short_of({}) == frozenset()  # while it is repaired

    second = instances(3)
    assert processes.short_of(needed) == frozenset()
    assert processes.deaths["net"].at_s == 0.0  # when it was noticed, not when it was repaired
    second[2].kill()
    until(lambda: not _lives(second[2]), "its end")
    assert processes.short_of(needed) == {"net"}
    assert all(map(_lives, (*first[1:], *second[:2])))

    third = instances(3)

    def ended() -> bool:
        clock.now_s += IDLE_S
        assert processes.short_of(needed) == frozenset()
        return not any(map(_lives, (*first, *second)))

    until(ended, "the ends of the others")
    assert all(map(_lives, third))


def test_of_steps_that_are_loaded_for_long_the_idle_ones_are_ended(server: Server, clock: Clock) -> None:
    processes = StepProcesses(server.record)
    loading = {"net": math.inf, "post": math.inf}

    assert processes.end_idle(loading) == frozenset()
    used_s = _cpu_s(server.steps["post"])
    until(lambda: _cpu_s(server.steps["post"]) - used_s >= 2 * IDLE_CPU_S, "its work")
    clock.now_s = IDLE_S - 1.0
    assert processes.end_idle(loading) == frozenset()
    clock.now_s = IDLE_S

    assert processes.end_idle(loading) == {"net"}
    until(lambda: psutil.Process(server.steps["net"]).status() == psutil.STATUS_ZOMBIE, "its end")
    assert psutil.Process(server.steps["post"]).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("loading", [{}, {"post": math.inf}, {"net": 0.0}], ids=["none", "another", "older"])
def test_an_idle_step_that_no_load_has_started_is_left_alone(
    loading: dict[str, float], server: Server, clock: Clock
) -> None:
    """Also while another process of the same step is loaded in its place."""
    processes = StepProcesses(server.record)

    for clock.now_s in (0.0, IDLE_S, 2 * IDLE_S):
        assert "net" not in processes.end_idle(loading)

    assert psutil.Process(server.steps["net"]).status() != psutil.STATUS_ZOMBIE


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _lives(process: psutil.Process) -> bool:
    return process.status() != psutil.STATUS_ZOMBIE
