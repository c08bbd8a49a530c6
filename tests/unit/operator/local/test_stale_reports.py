"""A server whose agent is silent keeps its requests for 30 s, as on a cluster, if Triton itself answers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from segserve_builder.agent.protocol import HEARTBEAT_FILE, REPORT_FILE, Report
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local import fleet as module
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.fleet import LocalFleet


@pytest.mark.own_deadlines
@pytest.mark.parametrize(
    ("age_s", "answers", "ready"),
    [
        pytest.param(2.0, False, True, id="a fresh report is believed"),
        pytest.param(20.0, True, True, id="an older one if Triton answers"),
        pytest.param(20.0, False, False, id="and not if it does not"),
        pytest.param(40.0, True, False, id="one that is too old is not"),
    ],
)
@pytest.mark.parametrize("file", [HEARTBEAT_FILE, REPORT_FILE], ids=["", "of an agent of an earlier release"])
async def test_a_server_is_ready(
    file: str, age_s: float, answers: bool, ready: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    fleet = LocalFleet(StateFolder(tmp_path), nothing, tmp_path, nothing)
    folder = fleet._folder("main")
    folder.root.mkdir(parents=True)
    folder.ports.write_text('{"http": 20000, "grpc": 20001, "metrics": 20002}')
    folder.record("triton").write_text(ProcessRecord.of(os.getpid()).to_json())
    folder.report.write_text(Report(server_ready=True).model_dump_json(by_alias=True))
    renewed = folder.root / file
    renewed.touch()
    os.utime(renewed, (time.time() - age_s,) * 2)

    async def probe(http_port: int) -> bool:
        assert http_port == 20000
        return answers

    monkeypatch.setattr(module, "_answers", probe)

    (server,) = (await fleet.groups())["main"].servers

    assert server.ready is ready
