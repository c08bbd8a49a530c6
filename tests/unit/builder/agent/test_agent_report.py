"""An agent's report changes hands without a gap."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from segserve_builder.agent import loop
from segserve_builder.agent.loop import HEARTBEAT_S, PROVING_S, TAKEOVER_S, ReportFile
from segserve_builder.agent.protocol import HEARTBEAT_FILE, REPORT_FILE, ModelReport, ModelState, Report


def model(state: ModelState) -> ModelReport:
    return ModelReport(model="coins", revision="coins-1", state=state)


def said(path: Path) -> list[ModelState]:
    return [found.state for found in Report.model_validate_json(path.read_text()).models]


def test_a_new_agent_leaves_the_report_alone_until_it_knows_its_models(tmp_path: Path) -> None:
    path = tmp_path / REPORT_FILE
    ReportFile(tmp_path).write(True, (model(ModelState.READY),))

    successor = ReportFile(tmp_path)
    successor.write(True, (model(ModelState.LOADING),))
    assert said(path) == [ModelState.READY]

    successor.write(True, (model(ModelState.FAILED),))
    assert said(path) == [ModelState.FAILED]

    successor.write(True, (model(ModelState.LOADING),))
    assert said(path) == [ModelState.LOADING]


@pytest.mark.own_deadlines
@pytest.mark.parametrize(
    ("state", "kept_s"),
    [
        pytest.param(ModelState.LOADING, TAKEOVER_S, id="a model that has to be loaded"),
        pytest.param(ModelState.PROVING, PROVING_S, id="a model that is loaded"),
    ],
)
def test_the_last_report_stands_for_long_only_if_the_models_are_loaded(
    state: ModelState, kept_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now_s = tmp_path / REPORT_FILE, 0.0
    ReportFile(tmp_path).write(True, (model(ModelState.READY),))
    monkeypatch.setattr(loop.time, "monotonic", lambda: now_s)
    successor = ReportFile(tmp_path)

    now_s = kept_s - 0.1
    successor.write(True, (model(state),))
    assert said(path) == [ModelState.READY]

    now_s = kept_s + 0.1
    successor.write(True, (model(state),))
    assert said(path) == [state]


def test_a_server_that_is_gone_is_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / REPORT_FILE
    ReportFile(tmp_path).write(True, (model(ModelState.READY),))

    ReportFile(tmp_path).write(False, (model(ModelState.LOADING),))

    assert said(path) == [ModelState.LOADING]


def test_a_first_agent_reports_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / REPORT_FILE

    ReportFile(tmp_path).write(True, (model(ModelState.FETCHING),))

    assert said(path) == [ModelState.FETCHING]


@pytest.mark.own_deadlines
def test_a_report_that_is_unchanged_is_not_written_again_and_one_that_is_damaged_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, heartbeat = 0.0, tmp_path / HEARTBEAT_FILE
    monkeypatch.setattr(loop.time, "monotonic", lambda: now_s)
    file, path = ReportFile(tmp_path), tmp_path / REPORT_FILE
    file.write(True, (model(ModelState.READY),))
    written = path.stat()
    os.utime(heartbeat, (0, 0))

    now_s = HEARTBEAT_S
    file.write(True, (model(ModelState.READY),))
    assert path.stat().st_ino == written.st_ino
    assert path.stat().st_mtime_ns == written.st_mtime_ns
    assert heartbeat.stat().st_mtime > 0

    path.write_text("{")
    now_s = 2 * HEARTBEAT_S
    file.write(True, (model(ModelState.READY),))
    assert said(path) == [ModelState.READY]
