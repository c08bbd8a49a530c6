"""Actions of an agent: names of revisions, progress of downloads, and reasons from Triton's log."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from fakes.flaky_server import Behaviour, flaky_server
from segserve_builder.agent import runner as runner_module
from segserve_builder.agent.decide import reports
from segserve_builder.agent.protocol import AssignedModel, Assignment, ModelState
from segserve_builder.agent.runner import ActionResult, ActionRunner, DownloadProgress
from segserve_builder.agent.server import Repository, TritonServer, log_position, logged_reason
from segserve_builder.agent.state import AgentState, AssignedRevision, Prepare, ServerSnapshot
from segserve_builder.spec.model_spec import Artifact, Input, Output, Runtime
from segserve_builder.steps.pipeline import Pipeline

MEGABYTE = 10**6
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


def test_progress_of_a_small_file_is_not_reported() -> None:
    said: list[str] = []
    for done in range(0, 50 * MEGABYTE, MEGABYTE):
        DownloadProgress(said.append)(done, 50 * MEGABYTE)

    assert said == []


def test_a_report_shows_the_progress_of_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "LARGE_BYTES", 1)
    state, said = AgentState(), []
    with flaky_server(Behaviour(bytes(3 * MEGABYTE))) as server:
        assigned = _assigned(f"{server.url}/net.onnx")
        nobody = TritonServer(1)
        runner = ActionRunner(nobody, Repository(tmp_path / "repository"), tmp_path / "cache", tmp_path / "log")
        result = runner.carry_out(Prepare(assigned.revision, assigned.model), assigned, None, said.append)

    state.progress[assigned.revision] = said[-1]
    (report,) = reports((assigned,), ServerSnapshot(ready=True), state)

    assert result.failure is not None
    assert result.failure.reason == "DigestMismatch"
    assert (report.state, report.message) == (ModelState.FETCHING, "downloaded 3 of 3 MB of the artifact")


def _assigned(uri: str) -> AssignedRevision:
    pipeline = Pipeline(
        model="coins",
        artifact_sha256="0" * 64,
        family="semantic-logits",
        input=Input(),
        classes=(),
        preprocess=(),
        postprocess=(),
        output=Output(),
        runtime=Runtime(),
    )
    return AssignedRevision.of(AssignedModel(pipeline=pipeline, artifact=Artifact(uri=uri, sha256="0" * 64)))


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


def test_a_missing_log_tells_nothing(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    assert logged_reason(log, "coins", log_position(log)) is None
