"""What a server pod's processes make of their environment and their files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fakes.pipelines import pipeline_of
from segserve_builder.agent import secret
from segserve_builder.agent.loop import AgentHealth
from segserve_builder.agent.protocol import Assignment, ModelReport, ModelState
from segserve_builder.agent.runner import ActionRunner
from segserve_builder.agent.server import Repository, TritonServer
from segserve_builder.agent.state import Ensemble
from segserve_builder.cluster.agent import AgentMetrics, AssignmentInbox
from segserve_builder.cluster.probe_server import ProbeServer, probe_response
from segserve_builder.cluster.settings import AgentSettings, ServerSettingsError, TritonSettings
from segserve_builder.cluster.triton import BoundedLog, JsonLog, arguments, environment
from segserve_builder.errors import UnknownNameError
from segserve_builder.render.tritonserver import Ports
from segserve_builder.sources.access import ACCESS_VARIABLE, Access, Credential
from segserve_builder.spec.model_spec import Artifact
from segserve_builder.steps.crash_record import crashed_members
from segserve_builder.steps.engine_cache import FOLDER_VARIABLE
from segserve_common.kube.shards import CONTENT_KEY, pack
from segserve_common.triton_log import TritonLogReader
from segserve_operator.adapters.local.runtime import RuntimeEnvironment
from segserve_operator.adapters.local.triton import triton_command

TRITON = {
    "SEGSERVE_TRITONSERVER": "/opt/tritonserver/bin/tritonserver",
    "SEGSERVE_BACKENDS": "/opt/tritonserver/backends",
    "SEGSERVE_TRITON_VERSION": "24.10",
}
AGENT = {
    "POD_NAME": "pod",
    "POD_NAMESPACE": "space",
    "POD_UID": "uid",
    "SEGSERVE_POOL": "pool",
    "SEGSERVE_GROUP": "main-1",
    "SEGSERVE_TRITON_VERSION": "26.04",
}


def flags(**more: str) -> dict[str, str]:
    found = arguments(TritonSettings.of(TRITON | more), "word")[1:]
    return {name: value for name, _, value in (flag.removeprefix("--").partition("=") for flag in found)}


def test_triton_is_managed_only_by_those_who_know_the_word() -> None:
    rule = "model-repository,shared-memory,trace,logging:segserve=word"
    assert flags()["http-restricted-api"] == flags()["grpc-restricted-protocol"] == rule
    assert secret.grpc_headers("word") == {"triton-grpc-protocol-segserve": "word"}


def test_triton_traces_only_where_the_pool_says_where_to() -> None:
    url = "http://collector:4318/v1/traces"
    settings = arguments(TritonSettings.of(TRITON | {"SEGSERVE_TRACES_URL": url}), "word")

    assert f"--trace-config=opentelemetry,url={url}" in settings
    assert "--trace-config=rate=0" in settings  # what is traced is decided before the server
    assert "trace-config" not in flags()


@pytest.mark.parametrize(
    ("told", "address"), [({}, "127.0.0.1"), ({"SEGSERVE_TRITON_LISTENS": "pod"}, "0.0.0.0")], ids=["default", "pod"]
)
def test_triton_leaves_loopback_only_where_its_image_says_so(told: dict[str, str], address: str) -> None:
    assert {flags(**told)[f"{kind}-address"] for kind in ("http", "grpc", "metrics")} == {address}


@pytest.mark.parametrize(
    ("ip", "http", "grpc"), [("10.0.0.7", "0.0.0.0", "0.0.0.0"), ("fd00::7", "ipv6:::", "[::]")], ids=["IPv4", "IPv6"]
)
def test_triton_listens_in_the_family_of_its_pods_address(ip: str, http: str, grpc: str) -> None:
    found = flags(SEGSERVE_TRITON_LISTENS="pod", POD_IP=ip)
    assert (found["http-address"], found["metrics-address"], found["grpc-address"]) == (http, http, grpc)


def test_each_release_of_triton_gets_only_the_flags_that_it_knows() -> None:
    told = {"SEGSERVE_MAX_REQUEST_BYTES": "99"}
    newer = {"http-max-input-size", "metrics-config"}
    assert newer & flags(**told).keys() == set()
    assert newer & flags(**told, SEGSERVE_TRITON_VERSION="25.05").keys() == set()
    assert newer & flags(**told, SEGSERVE_TRITON_VERSION="25.06").keys() == {"http-max-input-size"}
    assert newer <= flags(**told, SEGSERVE_TRITON_VERSION="26.04").keys()


def test_an_environment_of_the_users_own_wins() -> None:
    assert environment({"OMP_NUM_THREADS": "4"})["OMP_NUM_THREADS"] == "4"
    assert environment({})["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("missing", sorted(TRITON))
def test_what_the_launcher_is_not_told_it_asks_for(missing: str) -> None:
    with pytest.raises(ServerSettingsError, match=missing):
        TritonSettings.of({name: value for name, value in TRITON.items() if name != missing})


def test_another_server_gives_each_network_that_ended_a_process_a_chance_again(tmp_path: Path) -> None:
    marks = tmp_path / ".repository-running"
    marks.mkdir()
    (marks / "segserve--net-member--0123456789").touch()
    assert crashed_members(tmp_path / "repository")
    program = {"SEGSERVE_TRITONSERVER": "/bin/true", "SEGSERVE_RUN_FOLDER": str(tmp_path)}
    command = [sys.executable, "-m", "segserve_builder.cluster.triton"]

    subprocess.run(command, env={**os.environ, **TRITON, **program}, check=True)

    assert crashed_members(tmp_path / "repository") == frozenset()


def test_steps_find_their_engines_where_the_agent_puts_them(tmp_path: Path) -> None:
    program, seen = tmp_path / "triton", tmp_path / "seen"
    program.write_text(f'#!/bin/sh\nprintf %s "${FOLDER_VARIABLE}" > {seen}\n')
    program.chmod(0o755)
    given = {"SEGSERVE_TRITONSERVER": str(program), "SEGSERVE_RUN_FOLDER": str(tmp_path)}

    subprocess.run([sys.executable, "-m", "segserve_builder.cluster.triton"], env={**os.environ, **TRITON, **given})
    runner = ActionRunner(TritonServer(1), Repository(tmp_path / "repository"), tmp_path, tmp_path / "log")
    local = triton_command(
        RuntimeEnvironment(*[tmp_path] * 5),
        tmp_path / "repository",
        ports=Ports(1, 2, 3),
        shm_prefix="test",
        api_secret="secret",
    )

    assert seen.read_text() == str(runner.engines.folder) == local.environment[FOLDER_VARIABLE]


@pytest.mark.parametrize("missing", sorted(AGENT))
def test_what_the_agent_is_not_told_it_asks_for(missing: str) -> None:
    with pytest.raises(ServerSettingsError, match=missing):
        AgentSettings.of({name: value for name, value in AGENT.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("SEGSERVE_TRITON_VERSION", "2.51", "24.10 and later"),
        ("SEGSERVE_TRITON_VERSION", "23.12", "24.10 and later"),
        ("SEGSERVE_NETWORK_BACKEND", "tensorrt", "onnxruntime, python"),
    ],
)
def test_an_unknown_target_is_refused_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(UnknownNameError, match=re.escape(value)) as refused:
        AgentSettings.of(AGENT | {name: value})
    assert allowed in str(refused.value)


def test_what_artifacts_may_come_from_is_told_or_only_what_is_public() -> None:
    told = Access(schemes=("s3",), private=("10.0.0.0/8",), credentials=(Credential(scheme="s3", folder=Path("/s")),))

    assert AgentSettings.of(AGENT).access == Access()
    assert AgentSettings.of(AGENT | {ACCESS_VARIABLE: told.model_dump_json(exclude_defaults=True)}).access == told
    with pytest.raises(ServerSettingsError, match=ACCESS_VARIABLE):
        AgentSettings.of(AGENT | {ACCESS_VARIABLE: '{"schemas": []}'})


def test_a_place_to_listen_that_is_none_is_refused() -> None:
    with pytest.raises(ServerSettingsError, match="everywhere"):
        TritonSettings.of(TRITON | {"SEGSERVE_TRITON_LISTENS": "everywhere"})


def test_the_word_is_the_same_for_all_who_come_at_once(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(secret.obtain(tmp_path / "secret"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert len(found[0]) > 40
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_log_keeps_its_end_and_never_grows_beyond_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "triton.log"
    log = BoundedLog(path, max_bytes=1000)
    lines = [f"line {number:04}\n".encode() for number in range(500)]
    for line in lines:
        log.write(line)
        assert path.stat().st_size <= 1010
    log.close()
    kept = path.read_bytes().splitlines(keepends=True)
    assert kept == lines[-len(kept) :]
    assert len(kept) > 40


def test_a_log_goes_on_where_an_earlier_launcher_left_it(tmp_path: Path) -> None:
    for line in (b"first\n", b"second\n"):
        log = BoundedLog(tmp_path / "triton.log")
        log.write(line)
        log.close()
    assert (tmp_path / "triton.log").read_bytes() == b"first\nsecond\n"


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\n")).map(
    lambda text: f"E1122 13:35:12.6 7 a.cc:1] {text}\n".encode()
)


@given(st.lists(st.binary(min_size=1) | LINES))
@example([b'E1122 13:35:12.6 7 a.cc:1] "\\ud800"\n', b"\xff"])
def test_whatever_a_server_writes_in_whatever_pieces_is_lines_of_json(pieces: list[bytes]) -> None:
    log = JsonLog()

    rows = b"".join(log.convert(piece) for piece in [*pieces, b""]).splitlines()

    assert all({"time", "level", "logger", "message"} <= json.loads(row).keys() for row in rows)


def test_a_line_that_comes_in_two_pieces_is_one_object_and_the_last_needs_no_end() -> None:
    log = JsonLog()

    pieces = [log.convert(piece) for piece in (b"one, ", b"whole\nlast", b"")]

    assert pieces[0] == b""
    assert [json.loads(piece)["message"] for piece in pieces[1:]] == ["one, whole", "last"]


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    log = JsonLog()

    shown = b"".join(log.convert(b"x" * 2**16) for _ in range(64))

    assert len(shown) > 2**21


STEP = "segserve--post--e3ebf7b699"
ERROR = f"E1122 13:35:12.686106 7 pb_stub.cc:402] \"step '{STEP}': it failed\"\n".encode()


class Ensembles(Repository):
    """A repository that takes its time, or is away, and ends the log after some looks at it."""

    def __init__(self, *looks: Mapping[str, Ensemble] | OSError) -> None:
        self._looks = list(looks)
        self.ending = threading.Event()

    def ensembles(self) -> Mapping[str, Ensemble]:
        look = self._looks.pop(0)
        if not self._looks:
            self.ending.set()
        if isinstance(look, OSError):
            raise look
        return look


def owner(log: JsonLog) -> dict[str, str]:
    (row,) = log.convert(ERROR).splitlines()
    return {name: value for name, value in json.loads(row).items() if name in ("model", "revision")}


def test_an_error_of_a_step_is_written_whatever_the_repository_takes_and_names_its_model_once_that_was_read() -> None:
    log, read = JsonLog(), threading.Event()
    coins = Ensemble("coins-1", frozenset({STEP}))

    class Slow(Ensembles):
        def ensembles(self) -> Mapping[str, Ensemble]:
            assert read.wait(60)
            return super().ensembles()

    repository = Slow({"coins": coins, "coins.network": coins})
    following = threading.Thread(target=log.follow, args=(repository, repository.ending))
    following.start()
    before = owner(log)
    read.set()
    following.join(60)

    assert before == {}
    assert owner(log) == {"model": "coins", "revision": "coins-1"}


@pytest.mark.parametrize(
    ("second", "named"),
    [
        ({"coins": Ensemble("coins-2", frozenset({STEP}))}, {"model": "coins", "revision": "coins-2"}),
        ({name: Ensemble(f"{name}-1", frozenset({STEP})) for name in ("coins", "roads")}, {}),
        (OSError("it is away"), {"model": "coins", "revision": "coins-1"}),
    ],
)
def test_a_step_has_the_model_and_the_revision_that_have_it_now(
    second: Mapping[str, Ensemble] | OSError, named: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segserve_builder.cluster.triton.OWNERS_INTERVAL_S", 0.0)
    log, repository = JsonLog(), Ensembles({"coins": Ensemble("coins-1", frozenset({STEP}))}, second)

    log.follow(repository, repository.ending)

    assert owner(log) == named


def test_a_line_that_cannot_be_read_is_written_as_it_is_and_so_are_its_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = TritonLogReader.read

    def failing(self: TritonLogReader, line: str, now: datetime) -> list[dict[str, Any]]:
        if "broken" in line:
            raise RecursionError
        return read(self, line, now)

    monkeypatch.setattr(TritonLogReader, "read", failing)

    rows = [json.loads(row) for row in JsonLog().convert(b"one\nbroken\n" + ERROR).splitlines()]

    assert [(row["level"], row["message"]) for row in rows] == [
        ("info", "one"),
        ("info", "broken"),
        ("error", "it failed"),
    ]


def assigned(model: str) -> dict[str, Any]:
    pipeline = pipeline_of(classes=0, model=model)
    artifact = Artifact(uri="network.onnx", sha256=pipeline.artifact_sha256)
    plain = {"pipeline": pipeline, "artifact": artifact}
    return {name: value.model_dump(mode="json", by_alias=True, exclude_none=True) for name, value in plain.items()} | {
        "revision": pipeline.revision
    }


class Assigned:
    """An inbox of two shards, what it wrote, and what it refused."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "assignment.json"
        self.refused: list[tuple[ModelReport, ...]] = []
        self._inbox = AssignmentInbox(["a", "b"], self.path, self.refused.append)

    def take(self, name: str, value: Any) -> None:
        self._inbox.take(name, {"binaryData": {CONTENT_KEY: pack(value)}})

    @property
    def written(self) -> list[tuple[str, str]]:
        models = Assignment.model_validate_json(self.path.read_text()).models
        return [(told.model, told.revision) for told in models]


def named(*models: dict[str, Any]) -> list[tuple[str, str]]:
    return [(plain["pipeline"]["model"], plain["revision"]) for plain in models]


def unreadable(model: str) -> dict[str, Any]:
    return assigned(model) | {"revision": f"{model}-newer", "unknown": 1}


def test_an_assignment_is_written_whole_and_sorted_once_all_its_shards_were_read(tmp_path: Path) -> None:
    world, coins, birds = Assigned(tmp_path), assigned("coins"), assigned("birds")
    world.take("a", [coins])
    assert not world.path.exists()
    world.take("b", [birds])
    assert world.written == named(birds, coins)
    assert world.refused == [()]


def test_a_model_that_this_version_cannot_read_keeps_its_last_revision_and_is_reported(tmp_path: Path) -> None:
    world, coins, birds, cells = Assigned(tmp_path), assigned("coins"), assigned("birds"), assigned("cells")
    world.take("a", [coins])
    world.take("b", [])
    world.take("a", [unreadable("coins"), unreadable("roads"), birds])
    world.take("b", [cells])
    assert world.written == named(birds, cells, coins)
    refused = {report.revision: report for report in world.refused[-1]}
    assert refused.keys() == {"coins-newer", "roads-newer"}
    assert {(report.state, report.reason) for report in refused.values()} == {(ModelState.FAILED, "OtherVersion")}
    assert "unknown: Extra inputs are not permitted" in refused["coins-newer"].message

    world.take("a", [])
    assert (world.written, world.refused[-1]) == (named(cells), ())
    world.take("a", [unreadable("coins")])
    assert world.written == named(cells)


@pytest.mark.parametrize("bad", [{"no": "list"}, [{"not even": "names"}], ["text"]])
def test_a_shard_that_is_no_list_of_models_keeps_its_last_good_content(tmp_path: Path, bad: Any) -> None:
    world, coins = Assigned(tmp_path), assigned("coins")
    world.take("a", [coins])
    world.take("b", [])
    world.take("a", bad)
    assert world.written == named(coins)


def report(state: ModelState) -> ModelReport:
    return ModelReport(model="coins", revision="coins-1", state=state)


@pytest.mark.parametrize(
    ("health", "settled"),
    [
        (AgentHealth(0.0), False),
        (AgentHealth(0.0, has_assignment=True), False),
        (AgentHealth(0.0, has_assignment=False, server_ready=True), False),
        (AgentHealth(0.0, True, True), True),
        (AgentHealth(0.0, True, True, (report(ModelState.READY),)), True),
        (AgentHealth(0.0, True, True, (report(ModelState.FAILED),)), True),
        (AgentHealth(0.0, True, True, (report(ModelState.READY), report(ModelState.PROVING))), False),
        (AgentHealth(0.0, True, False, (report(ModelState.READY),)), False),
    ],
)
def test_a_pod_is_ready_once_all_that_it_was_told_is_proved_or_refused(health: AgentHealth, settled: bool) -> None:
    assert health.is_settled is settled


def test_probes_and_metrics_are_answered_over_http() -> None:
    health = AgentHealth(0.0, True, True, (report(ModelState.READY),), probe_s=0.25)
    metrics = AgentMetrics(lambda: health, lambda: 1.5, lambda: 2.0**30)
    server = ProbeServer(0, {"/ready": lambda: probe_response(False, "not yet"), "/metrics": metrics.answer})
    server.start()
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/ready")
        with refused.value as answer:
            assert (answer.code, answer.read()) == (503, b"not yet\n")
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
    finally:
        server.stop()
    assert 'segserve_agent_models{state="Ready"} 1.0' in lines
    assert 'segserve_agent_models{state="Failed"} 0.0' in lines
    assert "segserve_agent_probe_seconds 0.25" in lines
    assert "segserve_agent_server_memory_bytes 1.073741824e+09" in lines
    assert "segserve_agent_api_age_seconds 1.5" in lines
