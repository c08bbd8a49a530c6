"""Whatever dies or hangs: callers get an answer or a typed error, and then all is as it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from bench.platform import MODELS, platform
from fakes.callers import COIN_PIXELS, PHOTO, Load
from fakes.waiting import HANG_S, until
from fakes.watching import Watched, segserve
from segserve import Client, OverloadedError, SegserveError
from segserve_builder.agent.protocol import Report
from segserve_operator.adapters.local.files import cache_folder, read_platform
from segserve_operator.adapters.local.runtime import ensure_runtime

pytestmark = pytest.mark.platform

WAITS_SINCE = (26, 4)
"""The release of Triton that was seen to wait for a step without a core."""
STALLED_S = 10.0
"""Several times as long as Triton 2.51 waits for one."""
# Nobody can be sent elsewhere, so requests are refused; what a dying server had begun is lost.
UNAVAILABLE = ("OverloadedError", "StatusCode.UNAVAILABLE")
UNREACHABLE = (*UNAVAILABLE, "GatewayUnreachableError", "ConnectionLostError")
BROKEN_OFF = (*UNAVAILABLE, "ServerError", "StepDiedError", "StatusCode.INTERNAL")
Edit = Callable[..., Path]
PATIENT = f"""\
apiVersion: segserve.dev/v1alpha1
kind: TritonPool
metadata: {{name: default}}
spec:
  gateway: {{requestTimeoutSeconds: {HANG_S:.0f}}}
"""
"""How long it takes until what died or hangs is noticed is the machine's matter."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One platform for the module; each test leaves it serving `coins`."""
    pool: Path = tmp_path_factory.mktemp("pool") / "pool.yaml"
    pool.write_text(PATIENT)
    with platform(MODELS, pool) as running:
        yield Watched(running)


def kill(process: psutil.Process | None) -> None:
    assert process is not None
    process.kill()


def replaced(watched: Watched, record: str, former: psutil.Process | None) -> bool:
    found = watched.process(record)
    return found is not None and found != former


def comes_back(watched: Watched, healed: Callable[[], bool]) -> None:
    """Return once it is healed, ready, and answers right over both protocols."""

    def answers() -> bool:
        if not healed() or watched.condition("coins", "Ready").get("status") != "True":
            return False
        try:
            return all(_answers_right(watched, transport) for transport in ("http", "grpc"))
        except SegserveError:
            return False

    try:
        until(answers, "right answers")
    except AssertionError as error:
        log = watched.running.segserve("logs", "--tail", "15")
        raise AssertionError(f"{error}; {watched.manifest('coins')['status']['conditions']}\n{log}") from None


def _answers_right(watched: Watched, transport: str) -> bool:
    with Client(watched.running.url, transport=transport, retries=0, timeout_s=HANG_S) as client:
        return client.segment(PHOTO, model="coins").areas["coin"] in COIN_PIXELS


def _error(watched: Watched, timeout_s: float = 1) -> SegserveError | None:
    with Client(watched.running.url, retries=0, timeout_s=timeout_s) as client:
        try:
            client.segment(PHOTO, model="coins")
        except SegserveError as error:
            return error
    return None


def unexpected(failures: list[str], allowed: tuple[str, ...]) -> list[str]:
    return [failure for failure in failures if not any(name in failure for name in allowed)]


@pytest.mark.parametrize(
    ("record", "allowed"),
    [
        pytest.param("groups/main/triton", UNAVAILABLE, id="Triton"),
        pytest.param("groups/main/agent", (), id="its agent"),
        pytest.param("gateway/envoy", UNREACHABLE, id="Envoy"),
    ],
)
def test_a_process_that_is_killed_is_started_again(watched: Watched, record: str, allowed: tuple[str, ...]) -> None:
    former = watched.process(record)
    with Load(watched.running.url, pause_s=0.05) as load:
        kill(former)
        comes_back(watched, lambda: replaced(watched, record, former))

    assert unexpected(load.failures, allowed) == []
    assert len(load.answers) == 1


def test_an_instance_of_each_kind_that_is_killed_is_loaded_again(watched: Watched) -> None:
    triton = watched.process("groups/main/triton")
    with Load(watched.running.url, pause_s=0.05) as load:
        (step,) = steps_of_coins(watched)
        for name in (f"{step}_0_0", f"{step}_0_1"):
            former = watched.instances()[name]
            kill(former)
            # Triton keeps the other processes of the step for a while.
            comes_back(watched, partial(_is_newer, watched, name, former.create_time()))
            # Requests may be answered before the agent's report is in the status.
            until(partial(_has_died, watched, step), "the death in the status")

        # Ended once they are idle, so that a step does not grow with each death.
        until(lambda: _stubs(watched) == len(watched.instances()), "the end of the former processes")

    assert unexpected(load.failures, BROKEN_OFF) == []
    assert watched.process("groups/main/triton") == triton


def _is_newer(watched: Watched, name: str, created_s: float) -> bool:
    process = watched.instances().get(name)
    return process is not None and process.create_time() > created_s


def _has_died(watched: Watched, step: str) -> bool:
    message = watched.condition("coins", "RevisionLoaded")["message"]
    return f"{step} died" in message and "killed by SIGKILL" in message


def _stubs(watched: Watched) -> int:
    children = watched.process("groups/main/triton").children()
    return sum(child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_callers_outlast_a_step_that_gets_no_core_for_seconds(watched: Watched) -> None:
    """Triton 2.51 takes it for dead, and ends itself when it goes on: its process is started again meanwhile.

    Triton 26.04 waits for it, and the other instances answer meanwhile.
    """
    (step,) = steps_of_coins(watched)
    with Client(watched.running.url, timeout_s=HANG_S, retries=1000) as client, ThreadPoolExecutor(1) as threads:
        stalled = watched.steps()[step]
        stalled.suspend()
        try:
            called = threads.submit(client.segment, PHOTO, model="coins")
            until_s = time.monotonic() + STALLED_S
            if ensure_runtime(cache_folder()).target.release < WAITS_SINCE:
                # Beside much other work it may not look at the step meanwhile.
                until(lambda: _error(watched, HANG_S) or time.monotonic() > until_s, "Triton takes the step for dead")
            else:
                until(lambda: client.segment(PHOTO, model="coins") and time.monotonic() > until_s, "answers of others")
        finally:
            with suppress(psutil.NoSuchProcess):
                stalled.resume()
        answers = [called.result(HANG_S), *(client.segment(PHOTO, model="coins") for _ in range(20))]

    assert all(answer.areas["coin"] in COIN_PIXELS for answer in answers)
    comes_back(watched, lambda: True)


def steps_of_coins(watched: Watched) -> tuple[str, ...]:
    """Return the names of the steps that `coins` is made of."""
    report = Report.model_validate_json((watched.state.groups / "main/report.json").read_text())
    return next(model.steps for model in report.models if model.model == "coins")


def test_a_supervisor_that_is_killed_is_replaced_and_no_request_fails(watched: Watched) -> None:
    servers = [watched.process(name) for name in ("groups/main/triton", "groups/main/agent", "gateway/envoy")]
    former = watched.supervisor()
    with Load(watched.running.url, pause_s=0.02) as load:
        kill(former)
        until(lambda: sum(load.answers.values()) > 20, "answers without a supervisor")
        watched.running.segserve("up", "--detach")
        comes_back(watched, lambda: watched.supervisor() != former)

    assert load.failures == []
    assert [watched.process(name) for name in ("groups/main/triton", "groups/main/agent", "gateway/envoy")] == servers


def test_a_supervisor_that_is_killed_is_missed_and_the_next_one_starts_nothing_twice(watched: Watched) -> None:
    former = watched.supervisor()
    with Load(watched.running.url, pause_s=0.02) as load:
        kill(former)
        until(lambda: read_platform(watched.state) is None, "no supervisor")
        shown = segserve(watched.running.state, "get")
        before = servers(watched)
        for name in ("groups/main/triton", "groups/main/agent", "gateway/envoy"):  # the records are lost with it
            (watched.running.state / f"{name}.process.json").write_text("no record")
        watched.running.segserve("up", "--detach")
        comes_back(watched, lambda: True)

    assert "supervisor has ended" in shown.stderr
    assert "coins" in shown.stdout
    assert "True" in shown.stdout
    assert load.failures == []
    assert servers(watched) == before


def servers(watched: Watched) -> list[int]:
    """Return the ids of all processes that serve: of Triton, of its agent and of Envoy."""
    leaders = [process for process in watched.running.processes() if os.getsid(process.pid) == process.pid]
    parts = ("tritonserver", "segserve_builder.agent", "envoy")
    return sorted(each.pid for each in leaders if any(part in " ".join(each.cmdline()) for part in parts))


def test_a_supervisor_that_is_killed_in_the_middle_of_an_edit_leaves_nothing_half_done(
    watched: Watched, edited: Edit
) -> None:
    def candidate() -> tuple[str, str] | None:
        return watched.role("coins", "candidate")

    def its_server() -> psutil.Process | None:
        found = candidate()
        return watched.process(f"groups/{found[1]}/triton") if found is not None else None

    with Load(watched.running.url, pause_s=0.2) as load:
        for area, begun in ((151, candidate), (152, its_server)):
            file = edited(postprocess=[{"argmax": {}}, {"removeSmallRegions": {"minArea": area}}], keepPrevious="0s")
            before = watched.role("coins", "stable")
            watched.running.segserve("apply", "-f", str(file))
            # What has begun may have ended since: only that the edit serves lasts.
            until(
                lambda begun=begun, before=before: begun() or watched.role("coins", "stable") != before,
                "the edit has begun",
            )
            kill(watched.supervisor())
            watched.running.segserve("up", "--detach")  # returns once the edit serves
            assert watched.role("coins", "stable") != before
        until(lambda: watched.groups() == {"main"}, "the last revision settles")

    assert load.failures == []
    assert watched.role("coins", "previous") is None
    assert len([path for path in watched.state.revisions.iterdir() if path.name.startswith("coins-")]) == 3


def test_everything_is_killed_at_once_and_up_brings_it_back(watched: Watched) -> None:
    for process in [watched.supervisor(), *watched.running.processes()]:
        with suppress(psutil.NoSuchProcess):  # it ended with its parent, which was killed before it
            process.kill()
    until(lambda: not watched.running.processes(), "no process is left")

    watched.running.segserve("up", "--detach")

    comes_back(watched, lambda: True)


def test_a_server_that_hangs_is_reported_and_takes_part_again_when_it_goes_on(watched: Watched) -> None:
    triton = watched.process("groups/main/triton")
    assert triton is not None
    triton.suspend()
    try:
        found = watched.becomes("coins", "Ready", "False", "NoServer")
        assert "no server of group main serves coins-" in found["message"]
        # The condition is written just before the gateway is told.
        until(lambda: isinstance(_error(watched), OverloadedError), "requests are refused")
    finally:
        triton.resume()

    comes_back(watched, lambda: True)
    assert watched.process("groups/main/triton") == triton
