"""The control plane keeps its word on this machine's platform and on a cluster, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes import rollout_records as records
from fakes.control import FAILED, LOADING, SERVES, Caller, ClusterHarness, Harness, LocalHarness, answering, status
from fakes.kube_http import refusal
from segserve import (
    AsyncClient,
    BadRequestError,
    Client,
    ConflictError,
    InvalidResourceError,
    Local,
    NoPlatformError,
    NotFoundError,
    NotServingError,
    WaitTimeoutError,
)
from segserve_operator.core.rollout.phases import Phase
from segserve_platform.resources import RolloutPhase, SegmentationModel, SegmentationRollout, TritonPool

EXAMPLE = Path(__file__).parents[2] / "examples/coins/model.yaml"
COINS: dict[str, Any] = next(yaml.safe_load_all(EXAMPLE.read_text()))
POOL = "apiVersion: segserve.dev/v1alpha1\nkind: TritonPool\nmetadata: {name: default}\nspec: {gateway: {port: 8090}}\n"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve_platform.control.typed.LOOK_S", 0.02)
    monkeypatch.setattr("segserve_platform.platforms.local.POLL_S", 0.02)


@pytest.fixture(params=["this machine", "a cluster"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    return LocalHarness(tmp_path / "state") if request.param == "this machine" else ClusterHarness()


@pytest.fixture(params=["threads", "asyncio"])
def call(request: pytest.FixtureRequest, harness: Harness) -> Iterator[Caller]:
    if request.param == "threads":
        with Client(platform=harness.place()) as client:
            yield Caller(client)
        return
    async_client = AsyncClient(platform=harness.place())
    yield Caller(async_client)
    asyncio.run(async_client.close())


SOURCES = {
    "a mapping": lambda folder: COINS,
    "YAML text": lambda folder: yaml.safe_dump(COINS),
    "a path": lambda folder: _file(folder, COINS),
    "the name of a file": lambda folder: str(_file(folder, COINS)),
    "a typed model": lambda folder: SegmentationModel.model_validate(COINS),
}


def _file(folder: Path, *resources: Any) -> Path:
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump_all(resources))
    return path


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_applied_comes_back_typed_as_it_is_stored(source: str, call: Caller, tmp_path: Path) -> None:
    stored = call("models.apply", SOURCES[source](tmp_path))

    assert isinstance(stored, SegmentationModel)
    assert (stored.metadata.name, stored.metadata.generation) == ("coins", 1)
    assert [each.name for each in stored.spec.classes] == ["background", "coin"]
    assert call("models.get", "coins") == stored
    assert call("models.list") == [stored]


def test_a_model_that_was_read_can_be_changed_and_applied_again(call: Caller) -> None:
    stored = call("models.apply", COINS)
    again = call("models.apply", stored)
    runtime = stored.spec.runtime.model_copy(update={"max_batch_size": 4})

    changed = call(
        "models.apply", stored.model_copy(update={"spec": stored.spec.model_copy(update={"runtime": runtime})})
    )

    assert again.metadata.generation == stored.metadata.generation == 1
    assert changed.metadata.generation == 2
    assert changed.spec.runtime.max_batch_size == 4
    assert changed.spec.artifact == stored.spec.artifact


def test_a_file_of_several_resources_is_applied_as_a_whole(call: Caller, tmp_path: Path) -> None:
    text = EXAMPLE.read_text() + "---\n" + POOL

    models = call("models.apply_all", text)

    assert [model.metadata.name for model in models] == ["coins", "coins-instances", "coins-twostage"]
    assert [pool.spec.gateway.port for pool in call("pools.list")] == [8090]


def test_nothing_of_a_file_is_applied_where_one_resource_is_wrong(call: Caller) -> None:
    second = deepcopy(COINS)
    second["metadata"]["name"] = "second"
    second["spec"]["postprocess"] = [{"sharpen": {}}]

    with pytest.raises(InvalidResourceError, match=r"(?s)spec\.postprocess\[0\].*sharpen.*known: .*argmax"):
        call("models.apply_all", yaml.safe_dump_all([COINS, second]))
    assert call("models.list") == []


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a family": ({"family": "semantic-logit"}, r"spec\.family: .*'semantic-logit'.*known: .*semantic-logits"),
    "a number": ({"runtime": {"maxBatchSize": 0}}, r"spec\.runtime\.maxBatchSize: must be at least 1"),
    "a field": ({"runtimes": {}}, r"unknown field 'runtimes'.*runtime"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_manifest_names_the_field_and_what_is_allowed(mistake: str, call: Caller) -> None:
    change, said = MISTAKES[mistake]

    with pytest.raises(InvalidResourceError, match=said):
        call("models.apply", {**COINS, "spec": COINS["spec"] | change})
    assert call("models.list") == []


def test_apply_takes_one_model_and_says_what_else_it_was_given(call: Caller) -> None:
    with pytest.raises(InvalidResourceError, match=r"expected one SegmentationModel, got TritonPool"):
        call("models.apply", POOL)
    with pytest.raises(InvalidResourceError, match=r"got SegmentationModel, SegmentationModel, .*apply_all"):
        call("models.apply", EXAMPLE)
    with pytest.raises(BadRequestError, match="a mapping, a path or YAML text, got int"):
        call("models.apply", 7)


def test_pools_are_typed_resources_too(call: Caller) -> None:
    stored = call("pools.apply", POOL)

    assert isinstance(stored, TritonPool)
    assert call("pools.get", "default") == stored
    with pytest.raises(NotFoundError, match=r"no TritonPool 'other'.*default"):
        call("pools.get", "other")


def test_an_unknown_model_is_told_with_the_known_ones(call: Caller) -> None:
    call("models.apply", COINS)

    for verb in ("get", "delete", "wait"):
        with pytest.raises(NotFoundError, match=r"no SegmentationModel 'roads'.*there are: coins"):
            call(f"models.{verb}", "roads")
    with pytest.raises(NotFoundError, match="no SegmentationModel 'roads'"):
        call("rollouts.status", "roads")


def test_wait_returns_the_model_that_serves(call: Caller, harness: Harness) -> None:
    call("models.apply", COINS)
    harness.tell("coins", status(SERVES))

    served = call("models.wait", "coins")

    assert served.status.url == "http://gateway/v2/models/coins"
    assert served.status.roles.stable.revision == records.STABLE


def test_wait_sees_what_comes_while_it_waits(call: Caller, harness: Harness) -> None:
    call("models.apply", COINS)
    harness.tell("coins", status(LOADING))
    later = threading.Timer(0.2, harness.tell, ("coins", status(SERVES)))
    later.start()

    assert call("models.wait", "coins").status.conditions
    later.join()


def test_wait_ends_at_once_where_a_model_cannot_come_to_serve(call: Caller, harness: Harness) -> None:
    call("models.apply", COINS)
    harness.tell("coins", status(FAILED))

    with pytest.raises(NotServingError, match=r"^coins: GoldenFailed: IoU 0\.2, allowed 0\.9; if") as caught:
        call("models.wait", "coins", timeout_s=10_000)
    assert caught.value.model == "coins"


def test_waiting_in_vain_says_what_is_missing(call: Caller, harness: Harness) -> None:
    call("models.apply", COINS)
    harness.tell("coins", status(LOADING))

    with pytest.raises(WaitTimeoutError, match="coins is not ready after 0 s: Loading"):
        call("models.wait", "coins", timeout_s=0)


def test_a_deletion_is_over_when_nothing_is_left(call: Caller, harness: Harness) -> None:
    call("models.apply", COINS)
    call("models.delete", "coins")
    harness.vanish("coins")

    assert call("models.wait", "coins", for_="delete") is None
    assert call("models.list") == []


def test_what_can_be_waited_for_is_said(call: Caller) -> None:
    with pytest.raises(BadRequestError, match="for_ must be one of Ready, delete, got 'Serving'"):
        call("models.wait", "coins", for_="Serving")


def test_rollouts_are_typed_records_and_a_models_own_says_where_it_stands(call: Caller, harness: Harness) -> None:
    call("models.apply", COINS)
    found = records.record()
    older = replace(records.record(records.STARTED_S - 3600), name="coins-8d6f11d641-0")
    harness.tell("coins", status(at=records.standing(found)))
    for each in (older, found):
        harness.keep(each)

    at = call("rollouts.status", "coins")
    kept = call("rollouts.get", at.name)

    assert (at.phase, at.weight, at.revision) == (RolloutPhase.PROGRESSING, 25, records.CANDIDATE)
    assert isinstance(kept, SegmentationRollout)
    assert [verdict.gate for verdict in kept.status.verdicts] == ["errorRate", "latency", "burnRate", "goldenQuality"]
    assert [each.metadata.name for each in call("rollouts.list", "coins")] == [records.NAME, "coins-8d6f11d641-0"]
    assert call("rollouts.list", "roads") == []


def test_what_has_had_no_rollout_says_so(call: Caller, harness: Harness) -> None:
    call("models.apply", COINS)
    harness.tell("coins", status())

    for verb in ("status", "wait"):
        with pytest.raises(NotFoundError, match=r"coins has no rollout: without `spec\.rollout`"):
            call(f"rollouts.{verb}", "coins")
    with pytest.raises(NotFoundError, match="no record of a rollout 'coins-1'"):
        call("rollouts.get", "coins-1")


VERBS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "promote": ((), {"phase": Phase.BAKING, "weight": 100}),
    "abort": ((), {"phase": Phase.ROLLED_BACK, "weight": 0}),
    "pause": ((), {"paused": True}),
    "skip_gate": (("latency",), {"skipped": ("latency",)}),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_returns_where_the_rollout_stands_once_it_was_dealt_with(
    verb: str, call: Caller, harness: Harness
) -> None:
    gate, change = VERBS[verb]
    spec = COINS["spec"] | {"rollout": {"strategy": "canary"}}
    call("models.apply", {**COINS, "spec": spec})
    harness.tell("coins", status(at=records.standing()))
    after = replace(records.standing(), sequence=5, **change)

    with answering(harness, "coins", lambda text: status(at=after, handled=(text,))):
        at = call(f"rollouts.{verb}", "coins", *gate)

    assert (at.phase.value, at.weight, at.paused) == (after.phase.label, after.weight, after.paused)
    assert at.skipped_gates == after.skipped


def test_a_verb_that_cannot_be_met_changes_nothing(call: Caller, harness: Harness) -> None:
    call("models.apply", COINS)
    harness.tell("coins", status())

    with pytest.raises(ConflictError, match="promote: no rollout is in progress"):
        call("rollouts.promote", "coins")
    assert harness.annotations("coins") == {}


def test_what_nobody_answers_stays_asked(call: Caller, harness: Harness) -> None:
    call("models.apply", COINS)
    harness.tell("coins", status(at=records.standing()))

    assert call("rollouts.pause", "coins", timeout_s=0).paused is False
    with pytest.raises(WaitTimeoutError, match=r"not handled within 0\.1 s and stays in place \(segserve\.dev/abort: "):
        call("rollouts.abort", "coins", timeout_s=0.1)
    assert set(harness.annotations("coins")) == {"segserve.dev/abort", "segserve.dev/pause"}


def test_the_end_of_a_rollout_is_waited_for_and_a_bad_one_is_an_error(call: Caller, harness: Harness) -> None:
    call("models.apply", COINS)
    harness.tell("coins", status(at=records.standing(phase=Phase.SUCCEEDED, weight=100)))
    good = call("rollouts.wait", "coins")
    harness.tell("coins", status(at=records.standing(phase=Phase.ROLLED_BACK, reason="Harm", message="it errs")))

    with pytest.raises(NotServingError, match="is RolledBack: Harm: it errs") as caught:
        call("rollouts.wait", "coins")
    assert good.phase is RolloutPhase.SUCCEEDED
    assert caught.value.revision == records.CANDIDATE


def test_a_cancelled_wait_ends_and_the_client_goes_on(harness: Harness) -> None:
    async def story() -> list[str]:
        async with AsyncClient(platform=harness.place()) as client:
            await client.models.apply(COINS)
            waiting = asyncio.create_task(client.models.wait("coins", timeout_s=10_000))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return [model.metadata.name for model in await client.models.list()]

    assert asyncio.run(story()) == ["coins"]


def test_a_field_that_another_tool_has_set_is_a_conflict_unless_it_is_taken_over() -> None:
    harness = ClusterHarness()
    causes = [{"reason": "FieldManagerConflict", "field": ".spec.golden", "message": 'conflict with "helm"'}]
    path = "/apis/segserve.dev/v1alpha1/namespaces/lab/segmentationmodels/coins"
    harness.server.answers["PATCH", path] = lambda _: refusal(409, "Apply failed", causes=causes)

    said = r'\.spec\.golden \(conflict with "helm"\)'
    with Client(platform=harness.place()) as client, pytest.raises(ConflictError, match=said):
        client.models.apply(COINS)


def test_where_no_platform_is_up_nothing_is_waited_for(tmp_path: Path) -> None:
    with Client(platform=Local(tmp_path)) as client:
        client.models.apply(COINS)

        with pytest.raises(NoPlatformError, match="start it with `segserve up`"):
            client.models.wait("coins", timeout_s=10_000)


def test_without_a_place_it_is_that_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path))
    with Client(platform=Local(tmp_path)) as named, Client() as unnamed:
        named.models.apply(COINS)

        assert [model.metadata.name for model in unnamed.models.list()] == ["coins"]


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    program = (
        "import sys; sys.modules['kubernetes'] = None\n"
        "from segserve import Client, Cluster, MissingExtraError\n"
        "try: Client(platform=Cluster()).models.list()\n"
        "except MissingExtraError as error: print(error)"
    )

    assert run(program).endswith("pip install 'segserve[cluster]'")


def test_a_client_that_only_segments_loads_nothing_of_the_control_plane() -> None:
    program = (
        "import sys, segserve; segserve.Client()\n"
        "print([name for name in ('segserve_operator', 'pydantic', 'kubernetes', 'yaml') if name in sys.modules])"
    )

    assert run(program) == "[]"
