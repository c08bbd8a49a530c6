"""`rollout rehearse`: its two versions, a policy for a faster clock, its report, its exit codes and its errors."""

from __future__ import annotations

import copy
import json
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fakes import rollout_records as records
from segserve.cli import lifecycle
from segserve.cli.rollout import rehearse
from segserve.platforms.errors import InvalidResourceError
from segserve.platforms.manifests import read
from segserve.platforms.port import ParsedResource
from segserve.platforms.rollouts.rehearsal import (
    CallerTraffic,
    CallOutcome,
    CallResult,
    RehearsalReport,
    RehearsalVerdict,
    faster,
    is_held,
    model_of,
    rehearsal_of,
    report,
    stable_of,
)
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Decision

from .conftest import Command

EXAMPLE = Path(__file__).parents[4] / "examples/coins/rollout.yaml"
SLO = Slo(p95_milliseconds=100, p99_milliseconds=200)
OK, FAILED, REFUSED = CallOutcome.ANSWERED, CallOutcome.FAILED, CallOutcome.REFUSED


def coins(area: int = 150, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    found["spec"]["postprocess"][1]["removeSmallRegions"]["minArea"] = area
    found["spec"] |= changes
    return found


def written(folder: Path, name: str, *documents: dict[str, Any]) -> Path:
    (folder / name).write_text(yaml.safe_dump_all(documents))
    return folder / name


def parsed(*documents: dict[str, Any]) -> list[ParsedResource]:
    return [each for document in documents for each in read(document)]


# The two versions.


def test_both_versions_get_the_new_policy_for_the_faster_clock_and_the_pool_of_the_file() -> None:
    pool = {"apiVersion": "segserve.dev/v1alpha1", "kind": "TritonPool", "metadata": {"name": "tuned"}}
    old = coins(pool="elsewhere")
    del old["spec"]["rollout"], old["spec"]["slo"]
    old["metadata"]["annotations"] = {"segserve.dev/promote": "coins-1@2"}

    found = rehearsal_of(parsed({**pool, "spec": {}}, coins(151)), parsed(old), 10)

    stable, candidate = model_of(found.stable), model_of(found.candidate)
    assert [each.resource.metadata.name for each in found.pools] == ["tuned"]
    assert {each.spec.pool for each in (stable, candidate)} == {"tuned"}
    assert stable.spec.rollout == candidate.spec.rollout
    assert stable.spec.rollout == faster(found.policy, 10)
    assert stable.spec.progress_deadline == 10 * model_of(parsed(coins())[0]).spec.progress_deadline
    assert stable.metadata.annotations == {}
    assert stable.assigned.revision == model_of(parsed(old)[0]).assigned.revision


def test_relative_addresses_lead_to_the_folder_of_their_own_file(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    new, old = written(tmp_path / "new", "new.yaml", coins(151)), written(tmp_path, "old.yaml", coins())

    found = rehearsal_of(read(new), read(old), 10)

    assert model_of(found.stable).spec.artifact.uri == (tmp_path / "coins-unet.onnx").as_uri()
    assert model_of(found.candidate).spec.artifact.uri == (tmp_path / "new/coins-unet.onnx").as_uri()


PINS = {**coins(), "metadata": {"name": "pins"}}


@pytest.mark.parametrize(
    ("new", "old", "complaint"),
    [
        ([coins(151, rollout=None)], [coins()], "coins has no `spec.rollout`"),
        ([coins()], [coins()], "describe the same revision coins-"),
        ([coins(151)], [PINS], "has the model 'pins', the resource has 'coins'"),
        ([coins(151), PINS], [coins()], "exactly one SegmentationModel, got coins, pins"),
        ([], [coins()], "exactly one SegmentationModel, got none"),
    ],
)
def test_what_is_no_pair_of_versions_is_refused(new: list[Any], old: list[Any], complaint: str) -> None:
    for document in new:
        document["spec"] = {key: value for key, value in document["spec"].items() if value is not None}

    with pytest.raises(InvalidResourceError) as refused:
        rehearsal_of(parsed(*new), parsed(*old), 10)

    assert complaint in str(refused.value)


def served(revision: str | None = None, **changes: Any) -> dict[str, Any]:
    """Return the example as a platform serves it."""
    absolute = {"artifact": {**coins()["spec"]["artifact"], "uri": "s3://models/coins.onnx"}}
    manifest = coins(**{**absolute, "golden": {**coins()["spec"]["golden"], "uri": "s3://models/golden/"}, **changes})
    manifest["metadata"] |= {"generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z"}
    (model,) = parsed({**manifest, "metadata": {"name": "coins"}})
    stable = {"revision": revision or model_of(model).assigned.revision, "group": "main"}
    return {**manifest, "status": {"roles": {"stable": stable}}}


def test_the_stable_version_is_what_the_platform_serves() -> None:
    found = model_of(stable_of(served(), "the cluster"))

    assert found.spec.artifact.uri == "s3://models/coins.onnx"
    assert found.metadata.annotations == {}


def test_a_platform_that_serves_another_revision_than_its_spec_names_the_option() -> None:
    with pytest.raises(InvalidResourceError, match=r"serves coins-0000000000, but its spec describes .*--stable FILE"):
        stable_of(served("coins-0000000000"), "the cluster")


def test_addresses_that_are_relative_to_a_cluster_name_the_option() -> None:
    manifest = served(artifact=coins()["spec"]["artifact"])

    with pytest.raises(InvalidResourceError, match=r"artifact.uri of the cluster is relative .*--stable FILE"):
        stable_of(manifest, "the cluster")


# A policy for a faster clock.


def test_only_what_is_done_in_real_time_changes_with_the_clock_of_decisions() -> None:
    policy = RolloutPolicy.model_validate(
        {
            "steps": [{"weight": 5, "minDuration": "5m"}, {"weight": 50}],
            "shadow": {"maxDuration": "20m", "maxRequestsPerSecond": 5},
            "gates": [
                {"gate": "burnRate", "longWindow": "10m"},
                {"gate": "goldenQuality", "interval": "5m"},
                {"gate": "resource", "interval": "4s"},
                {"gate": "webhook", "name": "mine", "url": "http://localhost/", "interval": "1m", "timeout": "10s"},
            ],
        }
    )

    changed = faster(policy, 10).to_dict()

    gates = {gate["gate"]: gate for gate in changed["gates"]}
    assert [gates[name]["interval"] for name in ("goldenQuality", "resource", "webhook")] == ["30s", "1s", "6s"]
    assert changed["shadow"]["maxRequestsPerSecond"] == 50
    assert gates["burnRate"]["longWindow"] == "10m"
    assert gates["webhook"]["timeout"] == "10s"
    assert changed["shadow"]["maxDuration"] == "20m"
    assert {key: changed[key] for key in ("steps", "bakeTime", "deadline")} == {
        key: policy.to_dict()[key] for key in ("steps", "bakeTime", "deadline")
    }


@pytest.mark.parametrize("speed", [1, 7, 1000])
def test_a_policy_of_any_speed_is_one_that_the_platform_takes(speed: float) -> None:
    (model,) = parsed(coins())
    policy = model_of(model).spec.rollout
    assert policy is not None

    assert RolloutPolicy.model_validate(faster(policy, speed).to_dict()) == faster(policy, speed)
    assert faster(policy, 1) == policy


# The report.


def calls(*groups: tuple[int, str, CallOutcome, float]) -> tuple[CallResult, ...]:
    return tuple(CallResult(revision, answer, ms) for count, revision, answer, ms in groups for _ in range(count))


HEALTHY = calls((900, records.STABLE, OK, 20.0), (100, records.CANDIDATE, OK, 20.0))


def shown(phase: Phase, asked: tuple[CallResult, ...] = HEALTHY, speed: float = 10, **changes: Any) -> RehearsalReport:
    """Return the report of a rollout that loaded for 29 s, promoted or not 300 s and ended 400 s after its start."""
    found = records.record(slo=SLO)
    promoted = Decision(5, records.STARTED_S + 329, "CERTIFIED", Phase.BAKING, 95, "segserve", "Certified", "so it is")
    last = Decision(6, records.STARTED_S + 429, "END", phase, 0, "segserve", "Ended", "so it ends")
    decisions = (*found.decisions, *([promoted] if phase is Phase.SUCCEEDED else []), last)
    progress = replace(found.progress, phase=np.array(phase, np.int8), since_s=np.array(records.STARTED_S + 429))
    found = replace(found, decisions=decisions, progress=progress)
    standing = records.standing(found, **changes)
    view = records.seen(record=found, standing=standing, now_s=records.STARTED_S + 429)
    return report(view, CallerTraffic(asked, 10.0), SLO, speed)


def test_times_are_those_of_the_decisions_clock_but_servers_load_in_real_time() -> None:
    found = shown(Phase.SUCCEEDED)

    assert found.promoted_s == 2.9 + 300
    assert found.ended_s == 2.9 + 400
    assert [moment.after_s for moment in found.moments[:3]] == [0, 2.9, 2.9 + 12]
    assert shown(Phase.SUCCEEDED, speed=1).ended_s == 429


def test_a_promotion_says_when_and_that_nobody_was_harmed() -> None:
    found = shown(Phase.SUCCEEDED)

    assert (found.verdict, found.exit_code) == (RehearsalVerdict.PROMOTED, 0)
    assert found.headline() == (
        "coins: would be promoted after 5m3s, and its rollout would succeed after 6m43s; no request was harmed."
    )


def test_a_rollback_says_why_and_counts_the_harmed_beyond_the_share_of_stable() -> None:
    asked = calls(
        (880, records.STABLE, OK, 20.0),
        (20, records.STABLE, OK, 500.0),  # 1 in 45 is slow without the candidate
        (70, records.CANDIDATE, OK, 20.0),
        (8, records.CANDIDATE, OK, 201.0),
        (10, records.CANDIDATE, FAILED, 5.0),
        (2, records.CANDIDATE, REFUSED, 5.0),
    )

    found = shown(Phase.ROLLED_BACK, asked, message="it failed", reason="Breach")

    stable, candidate = found.sides
    assert (stable.requests, stable.slow, stable.failed) == (900, 20, 0)
    assert (candidate.requests, candidate.slow, candidate.failed, candidate.refused) == (90, 8, 10, 2)
    assert found.harmed == 18
    assert (found.verdict, found.exit_code, found.promoted_s) == (RehearsalVerdict.ROLLED_BACK, 3, None)
    assert found.headline() == "coins: would be rolled back after 6m43s: it failed; 18 requests harmed."


def test_one_harmed_request_is_one_request() -> None:
    asked = (*HEALTHY, *calls((1, records.CANDIDATE, FAILED, 1.0)))

    assert shown(Phase.SUCCEEDED, asked).headline().endswith("; 1 request harmed.")


def test_a_rollout_that_waits_for_a_person_is_undecided() -> None:
    message = "the step waits for a person to resume it"

    found = shown(Phase.PROGRESSING, reason="PersonAsked", message=message)

    assert (found.verdict, found.exit_code) == (RehearsalVerdict.UNDECIDED, 4)
    assert found.why == f"it waits for a person: {message}"


@pytest.mark.parametrize(
    ("reason", "held"),
    [("PersonAsked", True), ("DeadlinePassed", True), ("QuarantinedTooOften", True), ("Incident", False), ("", False)],
)
def test_what_only_a_person_could_continue_ends_the_rehearsal(reason: str, held: bool) -> None:
    assert is_held(records.standing(reason=reason)) is held


def test_a_candidate_that_nobody_asked_has_harmed_nobody_and_has_no_latencies() -> None:
    found = shown(Phase.ROLLED_BACK, calls((10, records.STABLE, OK, 20.0)))

    assert (found.harmed, found.sides[1].requests, found.sides[1].p50_ms) == (0, 0, None)


def test_a_stable_version_that_misses_its_slo_here_is_a_warning() -> None:
    slow = calls((90, records.STABLE, OK, 20.0), (10, records.STABLE, OK, 300.0))
    failing = calls((90, records.STABLE, OK, 20.0), (10, records.STABLE, FAILED, 3.0))

    for asked in (slow, failing):
        assert any("stable itself misses its SLO here" in each for each in shown(Phase.SUCCEEDED, asked).warnings)
    assert shown(Phase.SUCCEEDED).warnings == ()


def test_requests_that_came_too_late_or_to_no_revision_are_a_warning() -> None:
    view = records.seen(record=records.record(slo=SLO))
    asked = (*HEALTHY, *calls((2, "", FAILED, 1.0)))

    late = report(view, CallerTraffic(asked, 10.0, late_s=3.2, unsent=4), SLO, 10)

    assert len(late.warnings) == 2
    assert "up to 3.2 s too late and 4 not at all" in late.warnings[0]
    assert "2 requests failed before any revision was asked" in late.warnings[1]


def test_the_report_for_programs_has_a_stable_shape() -> None:
    document = json.loads(json.dumps(shown(Phase.SUCCEEDED).to_dict()))

    assert list(document) == [
        "model", "verdict", "exitCode", "why", "promotedAfterSeconds", "endedAfterSeconds", "harmed", "speed",
        "requestsPerSecond", "revisions", "gates", "decisions", "lateSeconds", "unsent", "warnings",
    ]  # fmt: skip
    assert document["verdict"] == "promoted"
    assert document["revisions"][1] == {
        "role": "candidate",
        "revision": records.CANDIDATE,
        "requests": 100,
        "failed": 0,
        "refused": 0,
        "slow": 0,
        "p50Milliseconds": 20.0,
        "p95Milliseconds": 20.0,
    }
    assert list(document["gates"][0]) == ["gate", "state", "text"]
    assert list(document["decisions"][0]) == ["afterSeconds", "phase", "weight", "reason", "message"]


# The command.


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The arguments of a rehearsal of the example."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (8, 8)).save(images / "a.png")
    new, old = written(tmp_path, "new.yaml", coins(151)), written(tmp_path, "old.yaml", coins())
    return ["rollout", "rehearse", "-f", str(new), "--stable", str(old), "--traffic", str(images)]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError("the disk is full"), 1)])
def test_the_platform_and_its_folder_are_gone_after_a_failure(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str], error: BaseException, code: int
) -> None:
    stored: list[str] = []

    def fail() -> None:
        stored.extend(path.parts[-2] for path in tmp_path.glob("segserve-rehearsal-*/objects/*/*/spec.yaml"))
        raise error

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(lifecycle, "install_runtime", fail)

    assert command(*files)[0] == code
    assert sorted(stored) == ["coins", "default"]
    assert not list(tmp_path.glob("segserve-rehearsal-*"))


def test_a_port_that_is_taken_is_named(command: Command, files: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        code, _, complaint = command(*files, "--port", port)

    assert code == 1
    assert f"port {port} is in use" in complaint


def test_without_a_platform_that_serves_the_model_the_option_is_named(command: Command, files: list[str]) -> None:
    at = files.index("--stable")

    code, _, complaint = command(*files[:at], *files[at + 2 :])

    assert code == 1
    assert "no SegmentationModel 'coins'" in complaint
    assert "--stable FILE" in complaint


@pytest.mark.parametrize(
    ("phase", "code"), [(Phase.SUCCEEDED, 0), (Phase.ROLLED_BACK, 3), (Phase.PROGRESSING, 4), (Phase.CANCELLED, 4)]
)
def test_the_exit_code_and_both_formats_say_the_verdict(
    command: Command, monkeypatch: pytest.MonkeyPatch, files: list[str], phase: Phase, code: int
) -> None:
    found = records.record(slo=SLO)
    found = replace(found, progress=replace(found.progress, phase=np.array(phase, np.int8)))
    view = records.seen(record=found, standing=records.standing(found, reason="Said", message="so it is"))
    monkeypatch.setattr(rehearse, "_perform", lambda *_, **__: (view, CallerTraffic(HEALTHY, 10.0)))

    text, document = command(*files), command(*files, "-o", "json")

    assert (text[0], document[0]) == (code, code)
    assert json.loads(document[1])["exitCode"] == code
    assert text[1].startswith("coins: ")
    assert "10 requests/s as recorded, sent 10 times as fast" in text[1]
    assert records.CANDIDATE in text[1]


def test_a_line_of_the_policy_that_is_wrong_is_an_error_before_anything_starts(
    command: Command, files: list[str], tmp_path: Path
) -> None:
    wrong = copy.deepcopy(coins(151))
    wrong["spec"]["rollout"]["bakeTime"] = "soon"
    written(tmp_path, "new.yaml", wrong)

    code, _, complaint = command(*files)

    assert code == 1
    assert "bakeTime" in complaint
