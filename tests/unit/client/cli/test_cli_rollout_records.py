"""`rollout list`, `replay` and `plan`: what there was, whether it comes out again, and what could be seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fakes import rollout_records as records
from fakes.kube_http import FakeServer
from segserve_operator.adapters.kube.rollouts import evidence_config_map
from segserve_operator.adapters.local.files import STATE_VARIABLE
from segserve_operator.adapters.local.rollouts import RolloutFiles
from segserve_operator.core.evidence import EvidenceWindow
from segserve_operator.core.rollout.decisions import DecisionInput, decide
from segserve_operator.core.rollout.engine import Progress, Signals
from segserve_operator.core.rollout.record import Record, Row
from segserve_operator.mapping.packed_evidence import chunks, pack_rows
from segserve_platform.cli.rollout import commands
from segserve_platform.cli.rollout.records import record_of_name
from segserve_platform.platforms.local import LocalPlatform
from segserve_platform.platforms.port import Platform

from .conftest import Command
from .rollout_platform import RolloutPlatform

EXAMPLE = Path(__file__).parents[4] / "examples/coins/rollout.yaml"


def lived(looks: int = 30) -> Record:
    """Return the record of a rollout as the engine itself has made it, from its first second on."""
    found = replace(records.record(), rows=(), decisions=(), sequence=0, progress=Progress.begun(records.STARTED_S))
    look = replace(EvidenceWindow.nothing(), seconds=np.array(1.0), requests=np.array([40.0, 5.0]))
    for second in range(1, looks + 1):
        found = decide(found, DecisionInput(records.STARTED_S + second, Signals(), look)).record
    return found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> RolloutPlatform:
    """A model whose rollout the engine has made."""
    found = lived()
    fake = RolloutPlatform([records.coins(records.standing(found))], {found.name: records.manifest(found)})
    monkeypatch.setattr(commands, "selected_platform", lambda _: fake)
    return fake


def test_rollouts_are_listed_newest_first_and_of_one_model_where_one_is_named(
    command: Command, here: RolloutPlatform
) -> None:
    roads = replace(records.record(records.STARTED_S + 60), name="roads-1-1", model="roads")
    here.records["roads-1-1"] = records.manifest(roads)

    _, everything, _ = command("rollout", "list")
    _, one, _ = command("rollout", "list", "coins", "-o", "wide")

    assert [line.split()[0] for line in everything.splitlines()] == ["ROLLOUT", "roads-1-1", records.NAME]
    assert [line.split()[1] for line in one.splitlines()] == ["MODEL", "coins"]
    assert "\x1b" not in everything


def test_no_rollouts_says_how_one_begins(command: Command, here: RolloutPlatform) -> None:
    here.records = {}

    assert command("rollout", "list")[1] == "no rollouts; the next change of a model with `spec.rollout` starts one\n"


def test_records_are_printed_as_they_are_kept(command: Command, here: RolloutPlatform) -> None:
    kept = list(here.records.values())

    assert json.loads(command("rollout", "list", "-o", "json")[1]) == kept
    assert list(yaml.safe_load_all(command("rollout", "list", "-o", "yaml")[1])) == kept


@pytest.mark.parametrize("by", ["model", "record", "file"])
def test_every_decision_comes_out_again_byte_for_byte(
    by: str, command: Command, here: RolloutPlatform, tmp_path: Path
) -> None:
    file = tmp_path / "record.yaml"
    file.write_text(yaml.safe_dump(here.records[records.NAME]))
    source = {"model": "coins", "record": records.NAME, "file": str(file)}[by]

    code, printed, complaint = command("rollout", "replay", source)

    count = len(lived().decisions)
    assert (code, complaint) == (0, "")
    assert count > 1
    assert printed.endswith(f"{records.NAME}: {count} of {count} decisions are reproduced byte for byte\n")


def test_a_decision_that_comes_out_otherwise_is_shown_and_is_exit_code_1(
    command: Command, here: RolloutPlatform
) -> None:
    found = lived()
    forged = replace(found.decisions[0], result=found.decisions[0].result.replace("PROVED", "ABORT"))
    here.records[found.name] = records.manifest(replace(found, decisions=(forged, *found.decisions[1:])))

    code, printed, _ = command("rollout", "replay", "coins")
    machine, said, _ = command("rollout", "replay", "coins", "-o", "json")

    assert (code, machine) == (1, 1)
    assert "decision 1\n  recorded " in printed
    document = json.loads(said)
    assert [each["same"] for each in document["decisions"]][:2] == [False, True]
    assert document["same"] is False


def test_a_record_without_what_its_decisions_saw_cannot_be_replayed(command: Command, here: RolloutPlatform) -> None:
    here.records[records.NAME] = records.manifest(records.record())

    code, _, complaint = command("rollout", "replay", "coins")

    assert code == 1
    assert "has 4 decisions, none with recorded evidence" in complaint


def test_another_policy_says_what_it_would_have_done(command: Command, here: RolloutPlatform, tmp_path: Path) -> None:
    policy, model = tmp_path / "policy.yaml", tmp_path / "model.yaml"
    policy.write_text("strategy: canary\nsteps: [{weight: 50}]\nminRequests: 1\n")
    model.write_text(yaml.safe_dump(records.coins(None, rollout={"steps": [{"weight": 50}], "minRequests": 1})))

    code, printed, _ = command("rollout", "replay", "coins", "--with", policy)
    _, again, _ = command("rollout", "replay", "coins", "--with", model)
    _, document, _ = command("rollout", "replay", "coins", "--with", policy, "-o", "json")

    assert code == 0
    assert printed == again
    assert printed.splitlines()[0].split() == ["AT", "SIGNAL", "PHASE", "WEIGHT", "IN", "FACT"]
    moves = json.loads(document)["moves"]
    assert (moves[0]["phase"], moves[0]["weight"]) == ("Progressing", 50)


WRONG: dict[str, tuple[str, str]] = {
    "a field that is none": ("steps: [{wait: 5}]\n", "policy.yaml: the policy: steps[0]: unknown field 'wait'"),
    "a text for a number": (
        "alpha: '0.1'\n",
        "the policy: alpha: must be a number, got '0.1'; write it without quotes",
    ),
    "a date": ("alpha: 2020-01-01\n", "the policy: alpha: must be a number, got '2020-01-01'"),
    "two documents": ("alpha: 0.1\n---\nalpha: 0.2\n", "must have one document with a policy, got 2"),
    "a model without one": ("kind: SegmentationModel\nspec: {}\n", "has no spec.rollout"),
    "no mapping": ("- 5\n", "must hold resources or a policy"),
    "no YAML": ("a: [\n", "cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_policy_that_is_none_is_told(case: str, command: Command, here: RolloutPlatform, tmp_path: Path) -> None:
    text, why = WRONG[case]
    (tmp_path / "policy.yaml").write_text(text)

    code, _, complaint = command("rollout", "replay", "coins", "--with", tmp_path / "policy.yaml")

    assert code == 1
    assert why in complaint


def test_a_file_without_a_record_and_a_name_without_one_are_told(
    command: Command, here: RolloutPlatform, tmp_path: Path
) -> None:
    (tmp_path / "none.yaml").write_text("kind: TritonPool\n")
    here.records = {}

    assert (
        "must have one document of the kind SegmentationRollout, got 0"
        in command("rollout", "replay", tmp_path / "none.yaml")[2]
    )
    assert "no record of 'coins'" in command("rollout", "replay", "coins")[2]


def test_a_record_of_another_shape_is_told_with_its_name(command: Command, here: RolloutPlatform) -> None:
    here.records[records.NAME]["status"]["state"] = "H4sI-nonsense"

    code, _, complaint = command("rollout", "replay", records.NAME)

    assert code == 1
    assert f"SegmentationRollout {records.NAME!r} cannot be read" in complaint
    assert "another version" in complaint


def test_the_example_has_the_same_networks_as_the_model_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def coins(path: Path) -> Any:
        spec = next(yaml.safe_load_all(path.read_text()))["spec"]
        return spec["artifact"], spec["golden"], spec["preprocess"], spec["postprocess"], spec["classes"]

    assert coins(EXAMPLE) == coins(EXAMPLE.with_name("model.yaml"))


@pytest.mark.parametrize("place", ["here", "cluster"])
def test_the_oldest_evidence_is_found_beside_the_record(
    place: str, server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = tuple(Row(records.STARTED_S + number, 1.0, 5, (10, 1), (0, 0)) for number in range(1200))
    found = records.record(rows=rows)
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path))
    RolloutFiles(tmp_path / "objects").write(found)
    server.put("apis/segserve.dev/v1alpha1/segmentationrollouts", records.manifest(found))
    apart = [pack_rows(chunk) for chunk in chunks(rows)]
    maps = [evidence_config_map(found, number, text, namespace="lab", pool="default", uid="u")
            for number, text in enumerate(apart)]  # fmt: skip
    server.put("api/v1/configmaps", *maps)
    platform: Platform = LocalPlatform() if place == "here" else server.platform()

    whole = record_of_name(platform, found.name)

    assert len(apart) == 2
    assert whole.rows == rows
    assert platform.chunks(found.name, 3) == [], "what is lost in part is no evidence"
