"""How far a fetch has come, in the words of a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.flaky_server import Behaviour, flaky_server
from segserve_builder.agent import arrival
from segserve_builder.agent.arrival import DownloadProgress
from segserve_builder.agent.decide import reports
from segserve_builder.agent.memory import AgentState
from segserve_builder.agent.protocol import AssignedModel, ModelState
from segserve_builder.agent.repository import Repository
from segserve_builder.agent.server import TritonServer
from segserve_builder.agent.state import AssignedRevision, Prepare, ServerSnapshot
from segserve_builder.agent.work import ActionRunner
from segserve_builder.spec.model_spec import Artifact, Input, Output, Runtime
from segserve_builder.steps.pipeline import Pipeline

MEGABYTE = 10**6


def test_a_large_file_is_told_of_at_every_twentieth() -> None:
    said: list[str] = []
    told = DownloadProgress(said.append)

    for done in range(0, 2001, 5):
        told(done * MEGABYTE, 2000 * MEGABYTE)

    assert len(said) == 21
    assert (said[0], said[-1]) == (
        "0 of 2000 MB of the artifact are here",
        "2000 of 2000 MB of the artifact are here",
    )


def test_a_file_of_unknown_size_is_told_of_once_it_is_large() -> None:
    said: list[str] = []
    told = DownloadProgress(said.append)

    for done in range(0, 600, 2):
        told(done * MEGABYTE, None)

    assert said == [f"{done} MB of the artifact are here" for done in (64, 256, 512)]


def test_a_small_file_is_not_worth_a_word() -> None:
    said: list[str] = []
    for done in range(0, 50 * MEGABYTE, MEGABYTE):
        DownloadProgress(said.append)(done, 50 * MEGABYTE)

    assert said == []


def test_a_report_says_how_far_a_fetch_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "LARGE_BYTES", 1)
    memory, said = AgentState(), []
    with flaky_server(Behaviour(bytes(3 * MEGABYTE))) as server:
        told = _told(f"{server.url}/net.onnx")
        nobody = TritonServer(1)
        work = ActionRunner(nobody, Repository(tmp_path / "repository"), tmp_path / "cache", tmp_path / "log")
        outcome = work.carry_out(Prepare(told.revision, told.model), told, None, said.append)

    memory.progress[told.revision] = said[-1]
    (report,) = reports((told,), ServerSnapshot(ready=True), memory)

    assert outcome.problem is not None
    assert outcome.problem.reason == "DigestMismatch"
    assert (report.state, report.message) == (ModelState.FETCHING, "3 of 3 MB of the artifact are here")


def _told(uri: str) -> AssignedRevision:
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
