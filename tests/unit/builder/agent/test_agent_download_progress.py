"""Progress of a download, as reports show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.flaky_server import Behaviour, flaky_server
from segserve_builder.agent import runner as runner_module
from segserve_builder.agent.decide import reports
from segserve_builder.agent.protocol import AssignedModel, ModelState
from segserve_builder.agent.runner import ActionRunner, DownloadProgress
from segserve_builder.agent.server import Repository, TritonServer
from segserve_builder.agent.state import AgentState, AssignedRevision, Prepare, ServerSnapshot
from segserve_builder.spec.model_spec import Artifact, Input, Output, Runtime
from segserve_builder.steps.pipeline import Pipeline

MEGABYTE = 10**6


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
