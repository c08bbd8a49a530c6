"""A store keeps rollouts' records exactly, whatever dies, and forgets the oldest; in memory, in files, on a cluster."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from fakes.kube_faults import Crash
from fakes.rollout_evidence import STARTED_S, record, row, same, state_of_record
from fakes.stores import ClusterHarness, FileHarness, MemoryHarness
from segserve_common.api_errors import ConflictError
from segserve_common.canonical import canonical_json
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.world.observed import ModelStatus
from segserve_operator.mapping.rollouts import OBJECT_BYTES

Harness: TypeAlias = MemoryHarness | FileHarness | ClusterHarness
Stores: TypeAlias = FileHarness | ClusterHarness
NOW_S = STARTED_S + 3600.0


@pytest.fixture(params=["memory", "files", "cluster"])
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    """A store with one model, that has no rollout yet."""
    made: Harness = {"memory": MemoryHarness, "cluster": ClusterHarness}.get(
        request.param, lambda: FileHarness(tmp_path)
    )()
    made.apply("coins", "one")
    return made


@pytest.fixture(params=["files", "cluster"])
async def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """A store that outlives its process."""
    made: Stores = FileHarness(tmp_path) if request.param == "files" else ClusterHarness()
    made.apply("coins", "one")
    return made


async def begun(harness: Harness, found: Record, **changes: object) -> None:
    """Have the model's status name a rollout."""
    await harness.store.models()
    await harness.store.save_status(found.model, ModelStatus(rollout=state_of_record(found, **changes)))
    await harness.store.models()


async def read(harness: Harness, name: str) -> Record | None:
    """Return a record as a new process finds it."""
    harness.restart()
    await harness.store.models()
    return (await harness.store.rollouts(NOW_S)).get(name)


async def test_a_record_comes_back_to_the_last_bit(harness: Harness) -> None:
    written = record()
    await begun(harness, written)
    await harness.store.save_rollout(written)

    assert same((await harness.store.rollouts(NOW_S))["coins-2-1"], written)
    assert same(await read(harness, "coins-2-1"), written)


async def test_a_standing_comes_back_with_the_status(harness: Harness) -> None:
    await begun(harness, record())
    at = state_of_record(record(), paused=True, quarantines=1)
    written = ModelStatus(rollout=at, handled=("coins-2@1", "coins-2@2"), slo="Met")
    await harness.store.save_status("coins", written)
    harness.restart()

    (model,) = await harness.store.models()

    assert model.status == written


async def test_what_people_ask_is_observed_and_changes_no_generation(harness: Harness) -> None:
    (before,) = await harness.store.models()
    harness.annotate("coins", "pause", "coins-2@1")
    (after,) = await harness.store.models()

    assert after.annotations == {"segserve.dev/pause": "coins-2@1"}
    assert after.generation == before.generation


async def test_a_later_record_takes_the_place_of_the_former(harness: Harness) -> None:
    await begun(harness, record())
    await harness.store.save_rollout(record())
    later = replace(record(rows=30, sequence=4), hung=None, verdicts=())
    await harness.store.save_rollout(later)

    assert same(await read(harness, later.name), later)


async def test_what_has_long_ended_or_is_not_named_is_not_read(harness: Harness) -> None:
    await begun(harness, record(), phase=Phase.SUCCEEDED)
    await harness.store.save_rollout(record())
    await harness.store.save_rollout(record("coins-3-1"))

    assert await harness.store.rollouts(NOW_S) == {}
    assert harness.rollout_names() == {"coins-2-1", "coins-3-1"}


async def test_a_record_that_was_never_written_is_absent(harness: Harness) -> None:
    await begun(harness, record())

    assert await harness.store.rollouts(NOW_S) == {}


async def test_a_record_of_a_model_that_is_gone_is_dropped(harness: Harness) -> None:
    await harness.store.models()
    await harness.store.save_rollout(record("pennies-2-1", "pennies"))

    assert harness.rollout_names() == set()


async def test_of_former_rollouts_the_latest_ten_are_kept(harness: Harness) -> None:
    names = [f"coins-2-{number:02}" for number in range(14)]
    for name in names:
        await begun(harness, record(name))
        await harness.store.save_rollout(record(name))
        await harness.store.save_rollout(record(name, sequence=4))

    assert harness.rollout_names() == set(names[-11:])


async def test_a_models_history_is_its_own(harness: Harness) -> None:
    harness.apply("pennies", "two")
    await harness.store.models()
    await harness.store.save_rollout(record("pennies-2-00", "pennies"))
    for number in range(14):
        await harness.store.save_rollout(record(f"coins-2-{number:02}"))

    assert "pennies-2-00" in harness.rollout_names()


async def test_records_end_with_their_model(harness: Harness) -> None:
    await begun(harness, record())
    await harness.store.save_rollout(record(rows=1200))
    harness.delete("coins")
    await harness.store.models()
    await harness.store.forget("coins")
    if isinstance(harness, ClusterHarness):
        harness.kube.collect()
        assert harness.chunks("coins-2-1") == []

    assert harness.rollout_names() == set()


async def test_old_evidence_is_kept_apart_and_comes_back(kept: Stores) -> None:
    written = record(rows=1700)
    await begun(kept, written)
    await kept.store.save_rollout(written)

    status = kept.rollout(written.name)["status"]
    assert (status["rows"], status["chunkedRows"]) == (1700, 1200)
    assert len(kept.chunk_versions(written.name)) == 3
    assert same(await read(kept, written.name), written)


async def test_a_full_chunk_is_never_written_again(kept: Stores) -> None:
    written = record(rows=1700)
    await begun(kept, written)
    await kept.store.save_rollout(written)
    before = kept.chunk_versions(written.name)

    longer = replace(written, rows=(*written.rows, *(row(number) for number in range(1700, 1760))))
    await kept.store.save_rollout(longer)
    grown = kept.chunk_versions(written.name)
    found = await read(kept, written.name)
    await kept.store.save_rollout(longer)

    assert same(found, longer)
    assert grown[:2] == before[:2]
    assert grown[2] != before[2]
    assert kept.chunk_versions(written.name) == grown


async def test_lost_evidence_takes_nothing_else_with_it(kept: Stores, caplog: pytest.LogCaptureFixture) -> None:
    written = record(rows=1700)
    await begun(kept, written)
    await kept.store.save_rollout(written)
    kept.lose_chunk(written.name, 1)

    found = await read(kept, written.name)
    assert same(found, replace(written, rows=written.rows[1200:]))
    assert "coins-2-1" in caplog.text

    longer = replace(found, rows=(*found.rows, *(row(number) for number in range(1700, 2400))))
    await kept.store.save_rollout(longer)
    assert same(await read(kept, written.name), longer)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param({"state": "nonsense"}, id="a state that is none"),
        pytest.param({"evidence": "bm90aGluZw=="}, id="evidence that is none"),
        pytest.param({"sequence": -1}, id="a number that cannot be"),
        pytest.param({"decisions": [{"what": 1}]}, id="a decision that is none"),
    ],
)
async def test_a_record_that_somebody_broke_is_named_absent_and_written_anew(
    kept: Stores, edit: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    written = record()
    await begun(kept, written)
    await kept.store.save_rollout(written)
    kept.spoil(written.name, **edit)

    assert await read(kept, written.name) is None
    assert await kept.store.rollouts(NOW_S) == {}
    (said,) = [entry for entry in caplog.records if entry.levelno == logging.WARNING]
    assert "SegmentationRollout 'coins-2-1' cannot be read" in said.message

    await kept.store.save_rollout(written)
    assert same(await read(kept, written.name), written)


@pytest.mark.parametrize("write", range(1, 7))
async def test_a_death_between_the_writes_of_a_record_harms_nothing(
    kept: Stores, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = record(rows=900), record(rows=1800, sequence=4)
    await begun(kept, first)
    await kept.store.save_rollout(first)

    died = False
    with monkeypatch.context() as patches:
        kept.dies_at(write, patches)
        try:
            await kept.store.save_rollout(second)
        except Crash:
            died = True

    assert died == (write <= 4), "three chunks and a status"
    assert same(await read(kept, first.name), first if died else second)
    await kept.store.save_rollout(second)
    assert same(await read(kept, first.name), second)


@pytest.mark.parametrize("write", range(1, 4))
async def test_a_death_while_a_record_begins_harms_nothing(
    kept: Stores, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(rows=900)
    await begun(kept, written)
    with monkeypatch.context() as patches:
        kept.dies_at(write, patches)
        with pytest.raises(Crash):
            await kept.store.save_rollout(written)

    assert await read(kept, written.name) is None
    await kept.store.save_rollout(written)
    assert same(await read(kept, written.name), written)


async def test_people_read_what_was_decided(kept: Stores) -> None:
    await begun(kept, record())
    await kept.store.save_rollout(record())

    found = kept.rollout("coins-2-1")
    status = found["status"]
    assert (found["spec"]["model"], found["spec"]["candidate"]) == ("coins", "coins-2")
    assert (status["phase"], status["weight"], status["reason"]) == ("Progressing", 25, "StepDone")
    assert [(each["signal"], each["weight"]) for each in status["decisions"]] == [("ADVANCE", 25)] * 3
    assert status["verdicts"][0]["numbers"]["n6"] == "inf"
    assert len(canonical_json(found)) < OBJECT_BYTES


async def test_a_record_that_somebody_deleted_is_made_anew() -> None:
    harness = ClusterHarness()
    harness.apply("coins", "one")
    await begun(harness, record(rows=900))
    await harness.store.save_rollout(record(rows=900))
    for kind, found in harness.kube.everything():
        if kind.name in ("SegmentationRollout", "ConfigMap"):
            harness.kube.remove(kind, found["metadata"]["namespace"], found["metadata"]["name"])

    later = record(rows=1000, sequence=4)
    await harness.store.save_rollout(later)

    assert same(await read(harness, later.name), later)


async def test_a_record_that_somebody_touched_is_read_before_it_is_written_again() -> None:
    harness = ClusterHarness()
    harness.apply("coins", "one")
    await begun(harness, record())
    await harness.store.save_rollout(record())
    harness.spoil("coins-2-1", weight=99)

    later = record(rows=30, sequence=4)
    with pytest.raises(ConflictError):
        await harness.store.save_rollout(later)
    assert (await harness.store.rollouts(NOW_S)).keys() == {"coins-2-1"}
    await harness.store.save_rollout(later)

    assert same(await read(harness, later.name), later)


async def test_at_rest_a_cluster_is_asked_nothing() -> None:
    harness = ClusterHarness()
    harness.apply("coins", "one")
    await begun(harness, record())
    await harness.store.save_rollout(record())
    calls = len(harness.api.calls)

    for _ in range(3):
        await harness.store.models()
        await harness.store.rollouts(NOW_S)

    assert len(harness.api.calls) == calls


async def test_old_evidence_is_not_in_the_operators_view() -> None:
    """A ConfigMap of it is up to a megabyte."""
    harness = ClusterHarness()
    harness.apply("coins", "one")
    await begun(harness, record(rows=1200))
    await harness.store.save_rollout(record(rows=1200))

    assert len(harness.chunks("coins-2-1")) == 2
    assert [name for chunk in harness.chunks("coins-2-1") if (name := chunk["metadata"]["name"])
            and any(harness.view.get(kind, "tests", name) for kind in harness.view.kinds)] == []  # fmt: skip


async def test_a_record_in_files_can_be_deleted_by_hand_and_comes_back_while_it_goes_on(tmp_path: Path) -> None:
    harness = FileHarness(tmp_path)
    harness.apply("coins", "one")
    await begun(harness, record(rows=900))
    await harness.store.save_rollout(record(rows=900))

    harness.store.delete("SegmentationRollout", "coins-2-1")
    assert harness.rollout_names() == set()
    assert await harness.store.rollouts(NOW_S) == {}

    await harness.store.save_rollout(record(rows=900))
    assert same(await read(harness, "coins-2-1"), record(rows=900))


async def test_annotations_survive_a_file_that_does_not_say_them(tmp_path: Path) -> None:
    """As with kubectl; and the file that is applied over and over is unchanged."""
    harness = FileHarness(tmp_path)
    harness.apply("coins", "one")
    harness.annotate("coins", "abort", "coins-2@1")
    harness.apply("coins", "one")
    harness.apply("coins", "two", team="vision")

    metadata = harness.store.get("SegmentationModel", "coins")["metadata"]
    assert metadata["annotations"] == {"segserve.dev/abort": "coins-2@1", "team": "vision"}
    assert metadata["generation"] == 2

    harness.store.annotate("SegmentationModel", "coins", {"segserve.dev/abort": None})
    assert harness.store.get("SegmentationModel", "coins")["metadata"]["annotations"] == {"team": "vision"}
