"""The agent beside the real Triton: what it loads, proves, refuses, repairs and takes away."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fakes.agent_group import Group, assigned, end, wait_for, with_golden, write_network
from fakes.waiting import HANG_S
from segserve_builder.agent.protocol import AssignedModel, ModelReport, ModelState
from segserve_builder.agent.state import LOADS_ALLOWED
from segserve_builder.render.tritonserver import shm_regions, sweep_shm
from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.runtime import RuntimeEnvironment, ensure_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.platform

# Python reads this as `sitecustomize`: a network's step stops in the middle of its load, once.
STOPS_ONCE = """
import os, signal, sys
from pathlib import Path


class Stop:
    def find_spec(name, path, target=None):
        if name == "onnxruntime" and (flag := Path(__file__).with_name("stops")).exists():
            flag.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)

sys.meta_path.insert(0, Stop)
"""


@pytest.fixture(scope="session")
def runtime() -> RuntimeEnvironment:
    return ensure_runtime(cache_folder())


@pytest.fixture(scope="module")
def shared(runtime: RuntimeEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    made = Group(tmp_path_factory.mktemp("group"), runtime)
    try:
        made.start_triton()
        made.start_agent()
        yield made
    finally:
        made.stop()


@pytest.fixture
def group(shared: Group) -> Iterator[Group]:
    """The shared group, holding nothing at the test's begin; processes that a test ended are started again."""
    yield shared
    assert shared.triton is not None
    assert shared.agent is not None
    if shared.triton.poll() is not None:
        shared.start_triton()
    if shared.agent.poll() is not None:
        shared.start_agent()
    shared.assign()
    wait_for(lambda: not any(shared.repository.iterdir()), shared.describe)


@pytest.fixture
def coins(tmp_path: Path) -> AssignedModel:
    return assigned("coins", tmp_path / "a.onnx", write_network(tmp_path / "a.onnx", 100.0))


def test_a_model_is_ready_once_it_has_answered_and_not_before(group: Group, coins: AssignedModel) -> None:
    group.assign(coins)
    seen = []

    def ready() -> ModelReport | None:
        report = group.of(coins)
        if report and report.state not in seen:
            seen.append(report.state)
        return report if report and report.state is ModelState.READY else None

    report = wait_for(ready, group.describe)
    assert (report.proof, report.loaded, report.artifact_verified) == ("builtin", True, True)
    assert set(report.steps) == set(group.stubs())
    assert group.bright_share("coins") == 0.5
    order = [ModelState.FETCHING, ModelState.LOADING, ModelState.PROVING, ModelState.READY]
    assert seen == [state for state in order if state in seen]


def test_a_golden_set_that_is_answered_is_the_proof(group: Group, coins: AssignedModel, tmp_path: Path) -> None:
    told = with_golden(coins, tmp_path / "golden", 24)
    group.assign(told)
    assert group.wait(told, ModelState.READY).proof == "golden"


def test_a_wrong_golden_answer_is_never_ready_and_says_what_was_seen(
    group: Group, coins: AssignedModel, tmp_path: Path
) -> None:
    told = with_golden(coins, tmp_path / "golden", 30)
    group.assign(told)
    report = group.wait(told, ModelState.FAILED, "GoldenFailed")
    assert "half.png: MASKS of class 0: IoU 0.8" in report.message
    assert not report.retryable


def test_a_wrong_sha256_is_refused_with_both_digests(group: Group, tmp_path: Path) -> None:
    actual = write_network(tmp_path / "a.onnx", 100.0)
    told = assigned("coins", tmp_path / "a.onnx", "0" * 64)
    group.assign(told)
    report = group.wait(told, ModelState.FAILED, "DigestMismatch")
    assert actual in report.message
    assert (report.retryable, report.loaded) == (True, False)


def test_a_missing_artifact_heals_once_it_is_there(group: Group, tmp_path: Path) -> None:
    told = assigned("coins", tmp_path / "late.onnx", write_network(tmp_path / "made.onnx", 77.0))
    group.assign(told)
    assert group.wait(told, ModelState.FAILED, "ArtifactMissing").retryable
    (tmp_path / "made.onnx").rename(tmp_path / "late.onnx")
    group.wait(told, ModelState.READY)


def test_a_network_of_another_signature_is_never_loaded(group: Group, tmp_path: Path) -> None:
    told = assigned("coins", tmp_path / "a.onnx", write_network(tmp_path / "a.onnx", 100.0, outputs=3))
    group.assign(told)
    report = group.wait(told, ModelState.FAILED, "SignatureMismatch")
    assert not report.retryable
    assert list(group.repository.iterdir()) == []


def last_word(group: Group, told: AssignedModel) -> ModelReport | None:
    """Return the report on a revision once nobody should wait for it."""
    seen = group.of(told)
    return seen if seen is not None and seen.state is ModelState.FAILED and not seen.retryable else None


def test_a_step_that_cannot_load_says_why_and_leaves_the_others_alone(
    group: Group, coins: AssignedModel, tmp_path: Path
) -> None:
    group.assign(coins)
    group.wait(coins, ModelState.READY)
    broken = assigned("broken", tmp_path / "b.onnx", write_network(tmp_path / "b.onnx", 1.0, operator="NoSuchOperator"))
    group.assign(coins, broken)
    report = group.wait(broken, ModelState.FAILED, "LoadFailed")
    assert "NoSuchOperator" in report.message
    assert "At:" not in report.message
    final = wait_for(lambda: last_word(group, broken), group.describe)
    assert final.attempts == LOADS_ALLOWED
    assert group.wait(coins, ModelState.READY).proof
    assert group.bright_share("coins") == 0.5


def test_a_new_revision_replaces_the_old_without_a_failed_request(
    group: Group, coins: AssignedModel, tmp_path: Path
) -> None:
    group.assign(coins)
    old = group.wait(coins, ModelState.READY)
    newer = assigned("coins", tmp_path / "b.onnx", write_network(tmp_path / "b.onnx", 250.0))
    group.assign(newer)
    answers = []

    def replaced() -> bool:
        answers.append(group.bright_share("coins"))
        report = group.of(newer)
        return bool(report and report.state is ModelState.READY and set(report.steps) == set(group.stubs()))

    wait_for(replaced, group.describe)
    assert answers == sorted(answers, reverse=True)
    assert (answers[0], answers[-1]) == (0.5, 0.0)
    kept = {"coins", *group.wait(newer, ModelState.READY).steps}
    wait_for(lambda: {path.name for path in group.repository.iterdir()} == kept, group.describe)
    assert set(old.steps) & kept == {old.steps[0]}


def test_an_exposed_network_is_served_under_its_own_name(group: Group, coins: AssignedModel) -> None:
    told = AssignedModel.model_validate(coins.model_dump(by_alias=True, exclude_none=True) | {"expose": ["network"]})
    group.assign(told)
    group.wait(told, ModelState.READY)
    assert group.server.states()["coins.network"] == "READY"


def test_an_unassigned_model_leaves_no_step_no_folder_and_no_shared_memory(group: Group, coins: AssignedModel) -> None:
    before = set(shm_regions(group.prefix))
    group.assign(coins)
    group.wait(coins, ModelState.READY)
    assert set(shm_regions(group.prefix)) - before
    group.assign()
    wait_for(lambda: not any(group.repository.iterdir()), group.describe)
    wait_for(lambda: not group.stubs() and set(shm_regions(group.prefix)) <= before, group.describe)
    wait_for(lambda: group.of_all() == [], group.describe)


def test_a_killed_step_is_repaired_and_proved_without_touching_the_others(group: Group, coins: AssignedModel) -> None:
    group.assign(coins)
    steps = group.wait(coins, ModelState.READY).steps
    before = {step: process.pid for step, process in group.stubs().items()}
    os.kill(before[steps[1]], signal.SIGKILL)
    wait_for(lambda: (report := group.of(coins)) and report.state is not ModelState.READY, group.describe)
    group.wait(coins, ModelState.READY)
    after = {step: process.pid for step, process in group.stubs().items()}
    assert after[steps[1]] != before[steps[1]]
    assert {after[step] for step in (steps[0], steps[2])} == {before[step] for step in (steps[0], steps[2])}
    assert group.bright_share("coins") == 0.5


def test_a_step_that_triton_took_for_dead_while_it_loaded_is_loaded_again(
    group: Group, coins: AssignedModel, tmp_path: Path
) -> None:
    """Triton waits for the end of such a process, though it may be well: for ever."""
    whole = group.runtime
    code = shutil.copytree(whole.code, tmp_path / "code")
    (code / "sitecustomize.py").write_text(STOPS_ONCE)
    (code / "stops").touch()
    assert group.triton is not None
    end(group.triton)
    group.runtime = replace(whole, code=code)
    group.start_triton()
    group.runtime = whole

    group.assign(coins)

    group.wait(coins, ModelState.READY)
    assert not (code / "stops").exists()
    assert group.bright_share("coins") == 0.5
    end(group.triton)  # its code goes with the test


def test_a_network_that_was_changed_in_the_repository_is_not_loaded_but_published_again(
    group: Group, coins: AssignedModel
) -> None:
    group.assign(coins)
    step = group.wait(coins, ModelState.READY).steps[1]
    (network,) = (group.repository / step).rglob("model.onnx")
    verified = network.read_bytes()
    network.write_bytes(verified[:-1] + bytes([verified[-1] ^ 1]))

    os.kill(group.stubs()[step].pid, signal.SIGKILL)

    wait_for(lambda: network.exists() and network.read_bytes() == verified, group.describe)
    group.wait(coins, ModelState.READY)
    assert group.bright_share("coins") == 0.5


def test_a_killed_triton_is_filled_and_proved_again(group: Group, coins: AssignedModel) -> None:
    group.assign(coins)
    group.wait(coins, ModelState.READY)
    assert group.triton is not None
    group.triton.kill()
    group.triton.wait()
    wait_for(lambda: not group.report().server_ready, group.describe)
    assert group.report().models[0].state is not ModelState.READY
    sweep_shm(group.prefix)
    group.start_triton()
    group.wait(coins, ModelState.READY)
    assert group.bright_share("coins") == 0.5


def test_a_killed_agent_adopts_what_is_loaded(group: Group, coins: AssignedModel) -> None:
    group.assign(coins)
    group.wait(coins, ModelState.READY)
    before = {step: process.pid for step, process in group.stubs().items()}
    assert group.agent is not None
    group.agent.kill()
    group.agent.wait()
    (group.folder / "report.json").unlink()
    group.start_agent()
    assert group.wait(coins, ModelState.READY).load_s == 0.0
    assert {step: process.pid for step, process in group.stubs().items()} == before


def test_sigterm_ends_an_agent_at_once_and_leaves_the_server_as_it_is(group: Group, coins: AssignedModel) -> None:
    group.assign(coins)
    group.wait(coins, ModelState.READY)
    assert group.agent is not None
    group.agent.terminate()
    assert group.agent.wait(HANG_S) == 0
    assert group.bright_share("coins") == 0.5
