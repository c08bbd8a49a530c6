"""`segserve why`: one list of what changed, on this machine and on a cluster."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.kube_http import FakeServer
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.resource_files import MOST_BYTES, add_event, read_events
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.api.loading import load
from segserve_operator.core.world.event import Event
from segserve_platform.cli import why as why_module
from segserve_platform.platforms.history import history, read_requests
from segserve_platform.platforms.port import PlatformEvent

from .conftest import MODEL_FILE, Command, conditions, model, pod, pool

NOW = 0.0
"""When the test that runs began."""
CANDIDATE = "coins-2222222222"


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "NOW", time.time())


def iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def line(ago_s: float, code: int = 200, **fields: Any) -> str:
    """Return a line of the access log; a request to `coins` unless it says otherwise."""
    given = {"response_flags": "-", "response_code_details": "via_upstream", "model": "coins", "duration_ms": 12}
    return json.dumps({"start_time": iso(NOW - ago_s), "response_code": code} | given | fields) + "\n"


def record(*decisions: tuple[float, str, int, str, str]) -> dict[str, Any]:
    """Return a rollout of `coins` with decisions: seconds ago, phase, weight, reason and message."""
    told = [
        {
            "sequence": number,
            "at": iso(NOW - ago_s),
            "atSeconds": NOW - ago_s,
            "signal": "ADVANCE",
            "phase": phase,
            "weight": weight,
            "actor": "segserve",
            "reason": reason,
            "message": message,
        }
        for number, (ago_s, phase, weight, reason, message) in enumerate(decisions, 1)
    ]
    spec = {"model": "coins", "stable": "coins-1111111111", "candidate": CANDIDATE}
    return {"metadata": {"name": "coins-1"}, "spec": spec, "status": {"decisions": told}}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """The store of this machine's platform, with one model and a log of everything."""
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "state"))
    found = LocalStore(StateFolder(tmp_path / "state"))
    apply(found, "1")
    found.set_gateway_access_log(1.0)
    found.state.gateway.mkdir()
    return found


def apply(store: LocalStore, digit: str) -> None:
    (resource,) = load(MODEL_FILE % (digit * 64), "model.yaml")
    manifest = resource.to_dict()
    manifest.pop("status", None)
    store.apply(resource, manifest)


def kinds(printed: str) -> list[str]:
    """Return the kinds of the entries in their order, with ! before problems."""
    found = re.findall(r"^([! ]) [0-9:]{8}  (\w+) ", printed, flags=re.MULTILINE)
    return [f"{mark.strip()}{kind}" for mark, kind in found]


def test_edits_events_and_failed_requests_of_this_machine_are_one_list_by_time(
    command: Command, store: LocalStore
) -> None:
    folder = store.state.objects / "SegmentationModel/coins"
    add_event(folder, Event("Warning", "GoldenFailed", "IoU 0.2"), NOW - 200)
    failed = [line(100 + number, 503, revision="coins-1", slice="camera-3", caller="key:a") for number in range(9)]
    store.state.access_log.write_text("".join([*failed, line(50), line(40, 404), line(30, model="other", code=500)]))
    apply(store, "2")

    code, printed, _ = command("why", "coins", "--local")

    assert code == 0
    assert [kind for kind in kinds(printed) if kind != "edit"] == ["!event", "!failed", "refused"]
    assert "9 requests to coins-1 failed; " in printed
    assert "HTTP 503 by the server; caller key:a; slice camera-3" in printed
    assert "generation 2: spec.artifact.sha256" in printed
    assert "other" not in printed


def test_json_has_the_same_entries_with_their_times(command: Command, store: LocalStore) -> None:
    store.state.access_log.write_text(line(100, 500) + line(90, 500, grpc_status="INTERNAL"))

    printed = json.loads(command("why", "coins", "--local", "-o", "json")[1])

    failed = next(entry for entry in printed["entries"] if entry["kind"] == "failed")
    assert failed["warning"] is True
    assert datetime.fromisoformat(failed["at"]) < datetime.fromisoformat(failed["until"])
    assert printed["model"] == "coins"


def test_without_a_log_the_list_says_how_to_have_one(command: Command, store: LocalStore) -> None:
    store.set_gateway_access_log(None)

    assert "so failed ones are not listed: `segserve up --access-log errors`" in command("why", "coins", "--local")[1]


def test_what_callers_write_into_the_log_steers_no_terminal(command: Command, store: LocalStore) -> None:
    nasty = "\x1b[2Jred\u202e"
    store.state.access_log.write_text(
        line(60, 500, request_id=nasty, slice=nasty) + "not json {\n[1]\n{}\n" + line(50, request_id=nasty)
    )

    printed = command("why", "coins", "--local")[1]

    assert "red" in printed
    assert not {"\x1b", "\u202e"} & set(printed)


@pytest.fixture
def cluster(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """A cluster with a model that is rolled out, whose server was restarted."""
    coins, gpus = model(), pool()
    coins["status"]["conditions"] = conditions("GoldenFailed", "IoU 0.2", Degraded="True")
    coins["status"]["conditions"][0]["lastTransitionTime"] = iso(NOW - 300)
    coins["metadata"]["managedFields"] = [
        {"manager": "helm", "time": iso(NOW - 900), "fieldsV1": {"f:spec": {"f:artifact": {}, "f:postprocess": {}}}},
        {"manager": "segserve", "time": iso(NOW - 1), "fieldsV1": {"f:spec": {}}},
        {"manager": "segserve", "time": iso(NOW - 1), "subresource": "status", "fieldsV1": {"f:status": {}}},
    ]
    gpus["spec"]["gateway"] = {"accessLog": {}}
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": iso(NOW - 500)}}
    broken = pod("main-1", "a", containerStatuses=[{"name": "triton", "restartCount": 2, "lastState": ended}])
    gateway = pod("none", "g")
    gateway["metadata"]["labels"] |= {"app.kubernetes.io/component": "gateway"}
    del gateway["metadata"]["labels"]["segserve.dev/group"]
    gateway["spec"]["containers"] = [{"name": "envoy"}]
    about = {"involvedObject": {"name": "coins", "uid": "u-coins"}}
    told = {"type": "Warning", "reason": "RolledBack", "message": "too many errors", "lastTimestamp": iso(NOW - 100)}
    server.put("apis/segserve.dev/v1alpha1/segmentationmodels", coins)
    server.put("apis/segserve.dev/v1alpha1/tritonpools", gpus)
    server.put("apis/segserve.dev/v1alpha1/segmentationrollouts", record(
        (700, "Progressing", 10, "StepDone", "the evidence allows the next weight"),
        (100, "RolledBack", 0, "MoreErrors", "too many errors"),
    ))  # fmt: skip
    server.put("api/v1/pods", broken, gateway)
    server.put("api/v1/events", {"metadata": {"name": "e1"}, **about, **told})
    path = f"/api/v1/namespaces/lab/pods/{gateway['metadata']['name']}/log"
    server.answers["GET", path] = lambda _: httpx.Response(
        200, text="[warning] of Envoy\n" + line(200, 500, revision=CANDIDATE, request_id="order-1")
    )
    monkeypatch.setattr(why_module, "selected_platform", lambda _: server.platform())
    return server


def test_on_a_cluster_owners_of_fields_pods_and_decisions_are_in_the_list(
    command: Command, cluster: FakeServer
) -> None:
    _, printed, _ = command("why", "coins")

    assert kinds(printed) == ["edit", "rollout", "!process", "!state", "!failed", "!rollout"]
    assert "by helm, which owns artifact, postprocess" in printed
    assert "server main-1/abc-a: triton ended: OOMKilled (exit code 137) (2 times)" in printed
    assert printed.count("too many errors") == 1


def test_what_may_not_be_read_is_a_note_and_the_rest_is_shown(command: Command, cluster: FakeServer) -> None:
    cluster.answers["GET", "/api/v1/namespaces/lab/events"] = lambda _: httpx.Response(
        403, json={"kind": "Status", "message": "events is forbidden"}
    )

    _, printed, _ = command("why", "coins")

    assert "note: events cannot be read: events is forbidden" in printed
    assert "!rollout" in kinds(printed)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        pytest.param({"response_code": 200}, None, id="answered"),
        pytest.param({"response_code": 503}, "failed", id="no server could take it"),
        pytest.param({"response_code": 0, "response_flags": "DC"}, "left", id="its caller left"),
        pytest.param({"response_code": 0, "response_flags": "DR"}, "left", id="its caller's deadline passed, by gRPC"),
        pytest.param({"response_code": 0}, "failed", id="nothing was answered"),
        pytest.param({"response_code": 429}, "refused", id="too many requests"),
        pytest.param({"response_code": 200, "grpc_status": "UNAVAILABLE"}, "failed", id="gRPC fault"),
        pytest.param({"response_code": 200, "grpc_status": "NOT_FOUND"}, "refused", id="gRPC refusal"),
    ],
)
def test_how_a_request_ended(fields: dict[str, Any], kind: str | None) -> None:
    (request,) = read_requests([json.dumps({"start_time": iso(NOW)} | fields)])

    assert request.ended_as == kind


def test_failures_with_a_pause_between_are_two_entries_and_older_ones_none() -> None:
    log = [line(ago_s, 500) for ago_s in (4000, 1000, 990, 980, 300)]

    entries = history(model(), [], [], read_requests(log), NOW - 3600)

    failed = [entry.text for entry in entries if entry.kind == "failed"]
    assert [text.split()[0] for text in failed] == ["3", "1"]
    assert failed[1].startswith("1 request failed")


def test_an_event_that_says_what_a_decision_says_is_not_listed_again() -> None:
    said = PlatformEvent(NOW - 100, "model coins", True, "RolledBack", "too many errors")
    other = PlatformEvent(NOW - 100, "pool default", False, "Ready", "all servers are ready", count=3)
    decided = record((100, "RolledBack", 0, "MoreErrors", "too many errors"))

    entries = history(model(), [decided], [said, other], [], NOW - 3600)

    assert sorted(entry.kind for entry in entries) == ["event", "rollout"]
    assert "(3 times)" in next(entry.text for entry in entries if entry.kind == "event")


def test_events_of_this_machine_are_kept_in_a_file_of_bounded_size(tmp_path: Path) -> None:
    for number in range(300):
        for half_s in (0.0, 0.5):
            add_event(tmp_path, Event("Normal", "Ready", f"{number} {'x' * 2000}"), number + half_s)

    kept = read_events(tmp_path)
    assert (tmp_path / "events.jsonl").stat().st_size <= MOST_BYTES
    assert kept[-1][0] == 299.0
    assert len(kept) == len({event.message for _, event in kept})


def test_an_event_about_a_model_that_is_gone_is_dropped(store: LocalStore) -> None:
    asyncio.run(store.emit("gone", Event("Normal", "Ready", "it serves")))
    asyncio.run(store.emit("coins", Event("Normal", "Ready", "it serves")))
    asyncio.run(store.emit(None, Event("Normal", "Ready", "all servers are ready")))

    assert [about for about, _, event in store.events("coins") if event.reason == "Ready"] == [
        "model coins",
        "pool default",
    ]
    assert not (store.state.objects / "SegmentationModel/gone").exists()
