"""`segserve explain` and `segserve version`: what they say of fields and of who answers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest

from fakes.kube_http import FakeServer
from segserve.platform import Local
from segserve_common.process_record import ProcessRecord
from segserve_operator.api.resources import KINDS
from segserve_operator.api.schema import structural_schema
from segserve_platform.cli import version as version_command
from segserve_platform.cli.explain import field_paths
from segserve_platform.platforms.selection import open_platform

from .conftest import Command


def test_a_field_has_type_default_range_and_meaning(command: Command) -> None:
    code, printed, complaint = command("explain", "spec.rollout.steps")

    assert (code, complaint) == (0, "")
    lines = printed.splitlines()
    assert lines[0] == "SegmentationModel.spec.rollout.steps  <list of object>  (segserve.dev/v1alpha1)"
    assert "  Steps of a canary, with increasing weights." in lines
    assert "  default: [{weight: 5}, {weight: 25}, {weight: 50}]" in lines
    weight = lines.index("  weight  <integer>  required")
    assert lines[weight + 2] == "      range: at least 1, at most 99"
    assert "  minDuration  <duration>" in lines


@pytest.mark.parametrize(
    "place",
    [
        "spec.slo", "segmentationmodel.spec.slo", "SegmentationModel.spec.slo", "segm.spec.slo",
        "segmentationmodels.spec.slo.",
    ],
)  # fmt: skip
def test_kinds_have_all_their_names_and_the_model_may_be_left_out(command: Command, place: str) -> None:
    assert command("explain", place) == command("explain", "spec.slo")


def test_positions_in_lists_may_be_left_out(command: Command) -> None:
    assert command("explain", "spec.classes[0].name") == command("explain", "spec.classes.name")


def test_without_a_field_the_kinds_are_listed(command: Command) -> None:
    _, printed, _ = command("explain")

    assert [kind for kind in KINDS if kind not in printed] == []


def test_recursive_lists_every_field_below(command: Command) -> None:
    _, printed, _ = command("explain", "tritonpool.spec.server", "--recursive")
    lines = printed.splitlines()

    assert "  resources  <object>" in lines
    assert "    limits  <map to quantity>" in lines
    assert command("explain", "tritonpool", "-R")[1].count("\n") > 100


def test_values_that_are_allowed_are_listed_in_whole_words(command: Command) -> None:
    _, printed, _ = command("explain", "spec.family")

    for family in structural_schema(KINDS["SegmentationModel"].type)["properties"]["spec"]["properties"]["family"][
        "enum"
    ]:
        assert family in printed.replace(",", " ").split()


TYPOS = {
    "spec.rolout": "error: unknown field of SegmentationModel.spec 'rolout' (did you mean 'rollout'?); known: ",
    "tritonpol": "error: unknown kind or field 'tritonpol' (did you mean 'tritonpool'?); known: ",
    "spec.family.name": "error: SegmentationModel.spec.family has no fields\n",
}


@pytest.mark.parametrize("place", TYPOS)
def test_a_typo_is_told_with_the_likeliest(command: Command, place: str) -> None:
    code, printed, complaint = command("explain", place)

    assert (code, printed) == (1, "")
    assert complaint.startswith(TYPOS[place])


def test_paths_complete_step_by_step() -> None:
    assert field_paths("spec.ro") == ["spec.rollout"]
    assert field_paths("tritonpool.spec.g") == ["tritonpool.spec.gateway"]
    assert {"spec", "tritonpool"} <= set(field_paths(""))
    assert field_paths("nothing.") == []


def test_the_version_is_that_of_the_client_where_no_platform_is_up(command: Command) -> None:
    code, printed, complaint = command("version")

    assert (code, complaint) == (0, "")
    assert printed.startswith(f"client: segserve {version('segserve')} (Python ")
    assert printed.endswith("\nplatform: none is up on this machine; start it with `segserve up`\n")
    assert json.loads(command("version", "-o", "json")[1])["platform"] is None


def test_the_version_of_a_platform_is_that_it_was_started_with(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path))
    own = asdict(ProcessRecord.of(os.getpid()))
    record = {"process": own, "url": "http://here", "observed": True, "version": "0.0.9"}
    (tmp_path / "platform.json").write_text(json.dumps(record))

    assert command("version")[1].endswith("\nplatform: segserve 0.0.9 at http://here (this machine)\n")
    del record["version"]
    (tmp_path / "platform.json").write_text(json.dumps(record))
    assert json.loads(command("version", "-o", "json")[1])["platform"] == {
        "place": "this machine",
        "url": "http://here",
        "version": None,
    }
    running = open_platform(Local(tmp_path)).version()
    assert running is not None
    assert running.version == ""


def test_the_version_on_a_cluster_is_that_of_its_operator(
    command: Command, monkeypatch: pytest.MonkeyPatch, server: FakeServer
) -> None:
    labels = {"app.kubernetes.io/name": "segserve", "app.kubernetes.io/component": "operator"}
    metadata = {"name": "segserve", "namespace": "lab", "labels": {**labels, "app.kubernetes.io/version": "0.3.0"}}
    spec = {"template": {"spec": {"containers": [{"name": "operator", "image": "x"}]}}}
    server.put("apis/apps/v1/deployments", {"metadata": metadata, "spec": spec})
    monkeypatch.setattr(version_command, "selected_platform", lambda _: server.platform())

    assert "platform: segserve 0.3.0 at " in command("version", "-n", "lab")[1]


def test_a_cluster_that_is_down_does_not_hide_the_version_of_the_client(command: Command, kubeconfig: Path) -> None:
    code, printed, complaint = command("version", "--kubeconfig", kubeconfig)

    assert code == 1
    assert printed.startswith("client: segserve ")
    assert "does not respond" in complaint
    assert command("version", "--client", "--kubeconfig", kubeconfig)[0] == 0
