"""The embedded Triton's command line and shared memory, and an agent that hangs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pytest

from segserve_builder.agent import secret
from segserve_builder.agent.protocol import HEARTBEAT_FILE, Report
from segserve_builder.render import tritonserver
from segserve_builder.render.tritonserver import Ports
from segserve_builder.sources.access import LOCAL
from segserve_builder.spec.names import TRACES_VARIABLE
from segserve_builder.steps.crash_record import crashed_members
from segserve_common.files import write_private
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local import processes, triton
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.fleet import AGENT_HANGS_S, AGENT_STARTS_S, GroupFolder, LocalFleet
from segserve_operator.adapters.local.runtime import RuntimeEnvironment

RUNTIME = RuntimeEnvironment(
    root=Path("/cache/runtime/1"),
    code=Path("/cache/runtime/1/code/2"),
    library_folder=Path("/lib"),
    triton=Path("/triton"),
    backends=Path("/triton/backends"),
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> triton.Command:
    monkeypatch.setenv("SEGSERVE_STATE", "/state")
    ports = Ports(1, 2, 3)
    return triton.triton_command(RUNTIME, Path("/repository"), ports=ports, shm_prefix="seg-main-", api_secret="word")


def test_every_address_is_loopback(command: triton.Command) -> None:
    addresses = [argument.partition("=")[2] for argument in command.argv if "-address=" in argument]
    assert addresses == ["127.0.0.1"] * 3


def test_stubs_find_their_python_library_and_code(command: triton.Command) -> None:
    assert command.environment["PATH"].startswith("/cache/runtime/1/bin:")
    assert command.environment["LD_LIBRARY_PATH"].startswith("/lib:")
    assert command.environment["SEGSERVE_CODE"] == "/cache/runtime/1/code/2"


def test_the_callers_environment_variables_are_passed_on(command: triton.Command) -> None:
    assert command.environment["SEGSERVE_STATE"] == "/state"


def test_steps_learn_where_their_server_sends_spans() -> None:
    url = "http://collector:4318/v1/traces"
    traced = triton.triton_command(
        RUNTIME, Path("/repository"), ports=Ports(1, 2, 3), shm_prefix="seg-main-", api_secret="word", traces_url=url
    )

    assert f"--trace-config=opentelemetry,url={url}" in traced.argv
    assert traced.environment[TRACES_VARIABLE] == url


def test_a_prefix_that_could_name_other_files_is_refused() -> None:
    with pytest.raises(ValueError, match="letters"):
        tritonserver.sweep_shm("../x")


def test_a_sweep_removes_only_the_regions_with_its_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tritonserver, "_SHM_FOLDER", tmp_path)
    region, other = str(uuid.uuid4()), str(uuid.uuid4())
    for name in (f"seg-main-{region}", f"seg-main-2-{other}", "seg-main-notes"):
        (tmp_path / name).touch()
    assert tritonserver.sweep_shm("seg-main-") == (f"seg-main-{region}",)
    assert {path.name for path in tmp_path.iterdir()} == {f"seg-main-2-{other}", "seg-main-notes"}


def test_another_server_gives_each_network_that_ended_a_process_a_chance_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFleet, "_start_process", lambda *_: None)
    fleet = LocalFleet(StateFolder(tmp_path), RUNTIME, tmp_path, LOCAL)
    repository = StateFolder(tmp_path).groups / "main/repository"
    marks = repository.parent / ".repository-running"
    marks.mkdir(parents=True)
    (marks / "segserve--net-member--0123456789").touch()
    assert crashed_members(repository)

    asyncio.run(fleet.start("main"))

    assert crashed_members(repository) == frozenset()


@dataclass
class Watch:
    """A fleet that has seen a server and its agent; only the agent's record and reports are its own."""

    fleet: LocalFleet
    folder: GroupFolder
    agent: ProcessRecord

    @property
    def is_intact(self) -> bool:
        return asyncio.run(self.fleet.groups())["main"].intact

    def report(self, heartbeat: float) -> None:
        write_private(self.folder.report, Report(server_ready=True).model_dump_json(by_alias=True))
        write_private(self.folder.root / HEARTBEAT_FILE, "")
        os.utime(self.folder.root / HEARTBEAT_FILE, (heartbeat, heartbeat))


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    state = StateFolder(tmp_path)
    folder = GroupFolder(state.groups / "main")
    folder.root.mkdir(parents=True)
    write_private(folder.ports, json.dumps(asdict(Ports(1, 2, 3))))
    secret.obtain(folder.secret)
    triton, agent = (
        processes.start(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            record=folder.record(name),
            log=folder.log(name),
            environment=os.environ,
            state=state.root,
        )
        for name in ("triton", "agent")
    )
    monkeypatch.setattr(LocalFleet, "_start_process", lambda *_: None)
    yield Watch(LocalFleet(state, RUNTIME, tmp_path, LOCAL), folder, agent)
    processes.end_marked_processes(state.root, grace_s=0)
    assert not processes.is_alive(triton)


@pytest.fixture
def passes(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let so many seconds pass, with a look every few seconds."""
    monotonic, ahead_s = time.monotonic, [0.0]

    def passes(seconds: float, look_s: float = 10.0) -> None:
        until_s = ahead_s[0] + seconds
        while ahead_s[0] < until_s:
            ahead_s[0] += min(look_s, until_s - ahead_s[0])
            monkeypatch.setattr(time, "monotonic", lambda: monotonic() + ahead_s[0])
            asyncio.run(watch.fleet.groups())

    return passes


def test_an_agent_that_hangs_is_ended(watch: Watch, passes: Callable[..., None]) -> None:
    assert watch.is_intact
    watch.report(1.0)
    psutil.Process(watch.agent.pid).suspend()
    assert watch.is_intact

    passes(AGENT_HANGS_S)

    assert not watch.is_intact
    asyncio.run(watch.fleet.start("main"))
    assert not processes.is_alive(watch.agent)


def test_an_agent_that_starts_has_more_time_for_its_first_report(watch: Watch, passes: Callable[..., None]) -> None:
    watch.report(1.0)  # of an agent before it
    passes(AGENT_STARTS_S - 60)
    assert watch.is_intact

    passes(120)

    assert not watch.is_intact


def test_an_agent_is_not_ended_that_was_stopped_together_with_its_supervisor(
    watch: Watch, passes: Callable[..., None]
) -> None:
    assert watch.is_intact
    watch.report(1.0)
    assert watch.is_intact

    passes(2 * AGENT_HANGS_S, look_s=2 * AGENT_HANGS_S)

    assert watch.is_intact


@pytest.mark.parametrize("heartbeat", [2.0, 0.5], ids=["later", "after the clock was set back"])
def test_an_agent_that_has_told_something_since_is_kept(
    watch: Watch, passes: Callable[..., None], heartbeat: float
) -> None:
    assert watch.is_intact
    watch.report(1.0)
    passes(AGENT_HANGS_S - 10)
    watch.report(heartbeat)
    passes(AGENT_HANGS_S - 10)

    assert watch.is_intact
    asyncio.run(watch.fleet.start("main"))
    assert processes.is_alive(watch.agent)
