"""Actions of an agent: names of revisions, progress of downloads, and reasons from Triton's log."""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pycocotools import mask as coco

from fakes.flaky_server import Behaviour, flaky_server
from fakes.pipelines import pipeline_of
from segserve_builder.agent import runner as runner_module
from segserve_builder.agent.decide import reports
from segserve_builder.agent.protocol import AssignedModel, Assignment, ModelState
from segserve_builder.agent.runner import LOAD_FAILED, ActionFailure, ActionResult, ActionRunner, DownloadProgress
from segserve_builder.agent.server import (
    Repository,
    TritonRefusedError,
    TritonServer,
    TritonTimeoutError,
    log_position,
    logged_reason,
)
from segserve_builder.agent.state import (
    AgentState,
    AssignedRevision,
    Ensemble,
    LoadStep,
    Prepare,
    Prepared,
    Probe,
    Prove,
    Serve,
    ServerSnapshot,
)
from segserve_builder.golden.judging import GOLDEN_FILE
from segserve_builder.render.tree import Tree
from segserve_builder.spec.members import NOT_OPENED, OPENING
from segserve_builder.spec.model_spec import Artifact
from segserve_builder.steps.crash_record import CrashRecord, crashed_members

MEGABYTE = 10**6
HEAVY_NAME = "segserve--heavy--0"
OLD = "E1120 08:00:00.000001 1 model_repository_manager.cc:1460] \"Poll failed for model directory 'coins': old\"\n"
NEW = "E1120 08:00:01.000001 1 model_repository_manager.cc:1460] \"Poll failed for model directory 'coins': new\"\n"
OTHER = "E1120 08:00:02.000001 1 model_repository_manager.cc:1460] \"Poll failed for model directory 'parts': x\"\n"
PIPELINE: dict[str, Any] = {
    "model": "coins",
    "artifactSha256": "1" * 64,
    "family": "semantic-logits",
    "input": {},
    "classes": [],
    "preprocess": [],
    "postprocess": [],
    "output": {},
    "runtime": {},
}


def assignment(uri: str = "file:///missing.onnx", **more: Any) -> AssignedModel:
    return AssignedModel.model_validate({"pipeline": PIPELINE, "artifact": {"uri": uri, "sha256": "1" * 64}, **more})


def prepared(spec: AssignedModel, folder: Path) -> ActionResult:
    nobody = cast(TritonServer, None)
    runner = ActionRunner(nobody, Repository(folder / "repository"), folder / "cache", folder / "log")
    return runner.carry_out(Prepare(spec.revision, spec.model), AssignedRevision.of(spec), None)


def test_a_record_without_a_name_gets_that_of_its_pipeline() -> None:
    spec = assignment()
    assert spec.revision == spec.pipeline.revision
    plain = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert AssignedModel.model_validate({k: v for k, v in plain.items() if k != "revision"}) == spec


def test_a_given_name_travels_and_is_never_computed_again() -> None:
    spec = assignment(revision="coins-0123456789")
    again = Assignment.model_validate_json(Assignment(models=(spec,)).model_dump_json(by_alias=True)).models[0]
    assert again == spec
    assert again.revision == "coins-0123456789"
    assert again != assignment()


def test_a_revision_that_another_version_named_is_refused_for_good(tmp_path: Path) -> None:
    failure = prepared(assignment(revision="coins-0123456789"), tmp_path).failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("OtherVersion", False)
    assert "coins-0123456789" in failure.message


def test_a_relative_uri_without_a_base_is_refused_for_good(tmp_path: Path) -> None:
    failure = prepared(assignment("networks/a.onnx"), tmp_path).failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("RelativeUri", False)


def test_progress_of_a_large_file_is_reported_every_twentieth() -> None:
    said: list[str] = []
    assigned = DownloadProgress(said.append)

    for done in range(0, 2001, 5):
        assigned(done * MEGABYTE, 2000 * MEGABYTE)

    assert len(said) == 21
    assert (said[0], said[-1]) == (
        "downloaded 0 of 2000 MB of the artifact",
        "downloaded 2000 of 2000 MB of the artifact",
    )


def test_progress_of_a_file_of_unknown_size_is_reported_once_it_is_large() -> None:
    said: list[str] = []
    assigned = DownloadProgress(said.append)

    for done in range(0, 600, 2):
        assigned(done * MEGABYTE, None)

    assert said == [f"downloaded {done} MB of the artifact" for done in (64, 256, 512)]


@pytest.mark.own_deadlines
def test_a_server_that_greets_late_is_slow_and_not_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the system connects, and nobody answers
        server = TritonServer(listening.getsockname()[1])

        with pytest.raises(TritonTimeoutError):
            server.states()

        server.close()


def test_a_report_shows_the_progress_of_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "LARGE_BYTES", 1)
    state, said = AgentState(), []
    with flaky_server(Behaviour(bytes(3 * MEGABYTE))) as server:
        assigned = _assigned(f"{server.url}/net.onnx")
        nobody = TritonServer(1)
        runner = ActionRunner(nobody, Repository(tmp_path / "repository"), tmp_path / "cache", tmp_path / "log")
        result = runner.carry_out(Prepare(assigned.revision, assigned.model), assigned, None, said.append)

    state.revisions[assigned.revision].progress = said[-1]
    (report,) = reports((assigned,), ServerSnapshot(ready=True), state)

    assert result.failure is not None
    assert result.failure.reason == "DigestMismatch"
    assert (report.state, report.message) == (ModelState.FETCHING, "downloaded 3 of 3 MB of the artifact")


def _assigned(uri: str) -> AssignedRevision:
    artifact = Artifact(uri=uri, sha256="0" * 64)
    return AssignedRevision.of(AssignedModel(pipeline=pipeline_of(classes=0), artifact=artifact))


def test_the_last_error_about_the_model_is_found(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_text('I1120 08:00:00.000001 1 server.cc:1] "coins"\n' + OLD + NEW + OTHER)
    assert logged_reason(log, "coins", 0) == "Poll failed for model directory 'coins': new"


def test_what_was_logged_before_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_text(OLD)
    since = log_position(log)
    assert logged_reason(log, "coins", since) is None


def test_a_log_that_was_cut_short_is_read_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_text(NEW)
    assert logged_reason(log, "coins", 10_000_000) == "Poll failed for model directory 'coins': new"


PRE, NET, POST = STEPS = ("segserve--pre--0", "segserve--net-shared--0", "segserve--post-shared--0")
MEMBER = "segserve--net-member--0123456789"


class Refusing:
    """A server that refuses each request with the next of some errors, the last one again and again."""

    def __init__(self, *errors: tuple[str, str]) -> None:
        self.errors = list(errors)
        self.asked = 0
        self.given: list[dict[str, Any]] = []

    def answered(self, name: str) -> int:
        return 0

    def infer(self, model: str, image: bytes, parameters: dict[str, Any], timeout_s: float) -> Any:
        self.asked += 1
        self.given.append(parameters)
        raise TritonRefusedError(*(self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]))


class Hanging(Refusing):
    """A server that answers no request."""

    def infer(self, model: str, image: bytes, parameters: dict[str, Any], timeout_s: float) -> Any:
        raise TritonTimeoutError("no answer")


SHARED = Tree({}, ("coins", {}), members={MEMBER: {}}, member_steps={MEMBER: NET})


def asked(
    action: Probe | Prove | Serve | LoadStep,
    server: Refusing,
    folder: Path,
    gpus: tuple[str, ...] = (),
    tree: Tree = SHARED,
) -> ActionResult:
    """Carry out an action on a model whose network and last step are shared, or that has another tree."""
    assigned = AssignedRevision.of(assignment(processes="shared"))
    repository = Repository(folder / "repository")
    runner = ActionRunner(cast(TritonServer, server), repository, folder, folder / "log", gpus=lambda: gpus)
    return runner.carry_out(action, assigned, Prepared(assigned, tree, dict.fromkeys(STEPS, 1), None))


@pytest.mark.parametrize(
    ("message", "suspects", "failing"),
    [
        pytest.param(f"in ensemble 'coins', {MEMBER}: RuntimeError: no", set(), {NET}, id="a member of a shared step"),
        pytest.param(f"Stub process '{NET}_0_0' is not healthy.", {NET}, set(), id="a shared step has ended"),
        pytest.param("ValueError: no", {PRE}, set(), id="its own step"),
    ],
)
def test_a_probe_suspects_only_steps_that_its_error_can_be_of(
    tmp_path: Path, message: str, suspects: set[str], failing: set[str]
) -> None:
    result = asked(Probe("coins-1", "coins"), Refusing(("INTERNAL", message)), tmp_path)

    assert result.suspects == suspects
    assert result.failing == failing


T4 = "Tesla T4, driver 550.54.15, compute capability 7.5"
FULL = ("INTERNAL", "onnx runtime error 6: Failed to allocate memory for requested buffer of size 4096")


@pytest.mark.parametrize(("gpus", "reason", "retried"), [((T4,), "OutOfMemory", True), ((), "ProofFailed", False)])
def test_a_proof_that_finds_no_memory_on_a_gpu_is_tried_again(
    tmp_path: Path, gpus: tuple[str, ...], reason: str, retried: bool
) -> None:
    failure = asked(Prove("coins-1", "coins"), Refusing(FULL), tmp_path, gpus).failure

    assert failure is not None
    assert (failure.reason, failure.retryable) == (reason, retried)


def test_a_probe_that_finds_no_memory_on_a_gpu_loads_nothing_again(tmp_path: Path) -> None:
    result = asked(Probe("coins-1", "coins"), Refusing(FULL), tmp_path, (T4,))

    assert not result.suspects | result.failing


ILLEGAL = (
    "onnx runtime error 1: Non-zero status code returned while running Conv node. Name:'/conv' Status Message: "
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaStreamSynchronize(stream);"
)


@pytest.mark.parametrize("by_server", [True, False], ids=["by Triton itself", "by its step"])
def test_an_error_that_ends_the_use_of_cuda_is_of_the_process_that_ran_the_network(
    tmp_path: Path, by_server: bool
) -> None:
    tree = Tree({}, ("coins", {}), networks=(NET,), native=frozenset({NET} if by_server else ()))
    server = Refusing(("INTERNAL", ILLEGAL))

    probe = asked(Probe("coins-1", "coins"), server, tmp_path, (T4,), tree)
    proof = asked(Prove("coins-1", "coins"), server, tmp_path, (T4,), tree)

    assert probe.server_lost_gpu is proof.server_lost_gpu is by_server
    assert bool(probe.suspects) is bool(proof.suspects) is not by_server  # no load by that server would help
    assert proof.failure == ActionFailure("LostGpu", ILLEGAL, retryable=True)


@pytest.mark.parametrize(
    ("message", "gpus"),
    [
        pytest.param(ILLEGAL, (), id="on a server without a GPU"),
        pytest.param("RuntimeError: running Conv node. Name:'/misaligned address'", (T4,), id="a name in the file"),
        pytest.param("CUDA failure 2: out of memory ; GPU=0", (T4,), id="an error that ends nothing"),
    ],
)
def test_other_errors_do_not_end_a_server(tmp_path: Path, message: str, gpus: tuple[str, ...]) -> None:
    tree = Tree({}, ("coins", {}), networks=(NET,), native=frozenset({NET}))

    assert not asked(Probe("coins-1", "coins"), Refusing(("INTERNAL", message)), tmp_path, gpus, tree).server_lost_gpu


class Gpuless(Refusing):
    """A server whose Triton finds no GPU."""

    def load(self, name: str) -> None:
        raise TritonRefusedError("INVALID_ARGUMENT", f"model {name} has kind KIND_GPU but no GPUs are available")


@pytest.mark.parametrize(("gpus", "shown"), [((), "no GPU"), ((T4,), T4)])
def test_a_load_without_the_gpu_that_it_needs_says_what_the_driver_shows(
    tmp_path: Path, gpus: tuple[str, ...], shown: str
) -> None:
    failure = asked(LoadStep(NET), Gpuless(("", "")), tmp_path, gpus).failure

    assert failure is not None
    assert failure.reason == "LoadFailed"
    assert (
        f"can use no GPU of this server, whose driver shows {shown}; give the pool's servers a GPU" in failure.message
    )


def test_a_member_that_hangs_in_a_shared_step_is_parted_from_the_others(tmp_path: Path) -> None:
    record = CrashRecord(tmp_path / "repository", NET)
    assert (tmp_path / ".repository-running").stat().st_mode & 0o070 == 0o070
    with record.running(MEMBER):
        result = asked(Probe("coins-1", "coins"), Hanging(("", "")), tmp_path)

    assert result.suspects == {*STEPS}
    assert crashed_members(tmp_path / "repository") == {MEMBER}


@pytest.mark.parametrize("said", ["no room", None])
def test_the_public_name_stays_as_it_was_until_the_members_are_open(tmp_path: Path, said: str | None) -> None:
    record = CrashRecord(tmp_path / "repository", NET)
    record.opened(MEMBER, said)

    failure = asked(Serve("coins-1", "coins"), Refusing(("", "")), tmp_path).failure

    assert failure is not None
    assert (failure.reason, failure.message) == (LOAD_FAILED, said or f"{MEMBER} {OPENING}")
    assert not list((tmp_path / "repository").iterdir())


def test_a_proof_waits_for_a_member_that_is_being_opened_and_ends_with_one_that_cannot_be(tmp_path: Path) -> None:
    opening = ("UNAVAILABLE", f"in ensemble 'coins', {MEMBER} {OPENING}")
    server = Refusing(opening, opening, ("UNAVAILABLE", f"{MEMBER} {NOT_OPENED}: MemoryError: no room"))

    failure = asked(Prove("coins-1", "coins"), server, tmp_path).failure

    assert server.asked == 3
    assert failure is not None
    assert (failure.reason, failure.retryable) == (LOAD_FAILED, True)
    assert "no room" in failure.message


@pytest.mark.parametrize(
    "refusal",
    [
        ("UNAVAILABLE", "Exceeds maximum queue size"),
        ("INTERNAL", "in ensemble 'coins', Stub process 'segserve--post--0_0_0' is not healthy."),
    ],
    ids=["a full queue", "a step that waits for a core"],
)
def test_a_busy_server_is_not_asked_again_at_once(tmp_path: Path, refusal: tuple[str, str]) -> None:
    server = Refusing(refusal)

    failure = asked(Prove("coins-1", "coins"), server, tmp_path).failure

    assert server.asked == 1
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("ProofFailed", True)


class TwoTiers:
    """A server whose heavy network covers 8 of 10 columns, and whose answers by itself `columns`."""

    def __init__(self, revision: str, columns: int) -> None:
        self.revision, self.columns = revision, columns
        self.asked: list[str] = []

    def infer(self, model: str, image: bytes, parameters: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.asked.append(parameters.get("cascade", ""))
        bitmap = np.zeros((10, 10), np.uint8, order="F")
        bitmap[:, : 8 if parameters.get("cascade") == "heavy" else self.columns] = 1
        return {
            "REVISION": np.array([self.revision.encode()], np.object_),
            "SIZE": np.array([10, 10], np.int32),
            "CLASSES": np.array([1], np.int32),
            "MASKS": np.array([coco.encode(bitmap)["counts"]], np.object_),
        }


def proof_of_tiers(folder: Path, columns: int, *, golden: bool = True) -> tuple[ActionResult, list[str]]:
    """Return the proof of a cascade that may lose 0.6 on its one golden image, and which networks were asked."""
    light = {"artifactSha256": "2" * 64, "family": "semantic-logits"}
    rule = {"light": light, "when": "confidence", "threshold": 0.5, "maxLoss": 0.6}
    classes = [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}]
    plain: dict[str, Any] = {
        "pipeline": PIPELINE | {"classes": classes, "cascade": rule},
        "artifact": {"uri": "file:///net.onnx", "sha256": "1" * 64},
        "golden": {"uri": "file:///golden", "sha256": "3" * 64} if golden else None,
    }
    assigned = AssignedRevision.of(AssignedModel.model_validate(plain))
    server = TwoTiers(assigned.revision, columns)
    heavy = server.infer("coins", b"", {"cascade": "heavy"}, 1.0)
    server.asked.clear()
    expected = {"SIZE": [10, 10], "CLASSES": [1], "MASKS": [heavy["MASKS"][0].decode()]}
    (folder / GOLDEN_FILE).write_text(json.dumps({"cases": [{"image": "a.png", "expected": expected}]}))
    (folder / "a.png").write_bytes(b"image")
    prepared = Prepared(assigned, Tree({}, ("coins", {})), {}, folder if golden else None)
    runner = ActionRunner(
        cast(TritonServer, server), Repository(folder / "repository"), folder / "cache", folder / "log"
    )
    return runner.carry_out(Prove(assigned.revision, "coins"), assigned, prepared), server.asked


def test_a_cascade_is_proved_by_its_heavy_answers_and_by_what_it_loses_against_them(tmp_path: Path) -> None:
    result, asked = proof_of_tiers(tmp_path, columns=8)

    assert result.proof is not None
    assert (result.proof.images, result.proof.cascade_loss) == (1, pytest.approx(0.5))
    assert asked == ["heavy", "heavy", ""]


def test_a_cascade_that_loses_more_than_was_declared_is_not_proved(tmp_path: Path) -> None:
    result, _ = proof_of_tiers(tmp_path, columns=4)

    assert result.failure is not None
    assert (result.failure.reason, result.failure.retryable) == ("GoldenFailed", False)
    assert "cascade.maxLoss: 1 images lose 0.5 on average, which bounds the expected loss by 0.75" in (
        result.failure.message
    )


class HangingTier:
    """A server one of whose networks hangs, by the name that it is asked by, while the model's light answers go on."""

    def __init__(self, hangs: str = "") -> None:
        self.hangs = hangs
        self.counts: Counter[str] = Counter()
        self.asked: list[tuple[str, Any]] = []

    def infer(self, model: str, image: bytes, parameters: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.asked.append((model, parameters))
        if self.hangs != "coins":
            self.counts["coins"] += 1
        if model == self.hangs:
            raise TritonTimeoutError("no answer")
        return {}

    def answered(self, name: str) -> int:
        return self.counts[name]

    def ensemble(self, name: str) -> Ensemble:
        return Ensemble("coins-1", frozenset())


@pytest.mark.parametrize("hangs", ["", "coins", HEAVY_NAME], ids=["none", "light", "heavy"])
def test_a_probe_asks_each_network_of_a_cascade_and_suspects_processes_of_one_that_hangs(
    tmp_path: Path, hangs: str
) -> None:
    assigned, tree = AssignedRevision.of(assignment()), Tree({}, ("coins", {}), heavy=HEAVY_NAME)
    prepared = Prepared(assigned, tree, {HEAVY_NAME: 0, PRE: 1}, None)
    server = HangingTier(hangs)
    runner = ActionRunner(cast(TritonServer, server), Repository(tmp_path / "repository"), tmp_path, tmp_path / "log")

    result = runner.carry_out(Probe("coins-1", "coins"), assigned, prepared)

    asked = [("coins", {"cascade": "light"}), (HEAVY_NAME, {})]
    assert server.asked == (asked[:1] if hangs == "coins" else asked)
    assert result.suspects == ({PRE} if hangs else frozenset())


def test_without_golden_images_both_networks_of_a_cascade_answer_the_builtin_one(tmp_path: Path) -> None:
    result, asked = proof_of_tiers(tmp_path, columns=4, golden=False)

    assert result.proof is not None
    assert asked == ["heavy", "heavy", "light", "light"]
