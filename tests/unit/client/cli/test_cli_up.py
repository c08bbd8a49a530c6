"""`segserve up` and `down` as far as they need no Triton: phases, what is kept, and what stands in their way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes import rollout_records as records
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_platform.cli.startup import Startup, is_up
from segserve_platform.platforms import local

from .conftest import Command, conditions, model


def moving(reason: str) -> Any:
    return model(roles={}, conditions=conditions(reason, Ready="False", Progressing="True", Degraded="False"))


def test_a_model_that_becomes_ready_has_a_line_with_the_time_of_each_phase() -> None:
    now_s = 0.0
    startup = Startup(["coins", "roads"], clock=lambda: now_s)
    lines: list[str] = []

    for at_s, reason in ((1.0, "Starting"), (3.0, "Fetching"), (4.5, "Loading"), (5.0, "Loading"), (5.5, "Proving")):
        now_s = at_s
        lines += startup.ready_lines([moving(reason)])
    assert lines == []
    assert startup.summary([moving("Proving")]) == "coins: golden images"
    lines += [*startup.ready_lines([model()]), *startup.ready_lines([model()])]

    assert lines == ["coins: ready after 5.5 s (server 1.0 s, download 2.0 s, load 2.0 s, golden images 0.5 s)"]
    assert list(startup.waiting) == ["roads"]


@pytest.mark.parametrize(
    ("done", "waits_for"),
    [
        ({}, "server"),
        ({"ArtifactVerified": "True"}, "load"),
        ({"ArtifactVerified": "True", "RevisionLoaded": "True"}, "golden images"),
    ],
)
def test_a_kept_model_waits_for_what_its_servers_have_not_done_yet(done: dict[str, str], waits_for: str) -> None:
    kept = model(conditions=conditions("NoServer", Ready="False", Progressing="False", Degraded="True", **done))

    assert Startup(["coins"]).summary([kept]) == f"coins: {waits_for}"


def test_a_model_that_served_all_along_has_a_line_without_times() -> None:
    assert list(Startup(["coins"]).ready_lines([model()])) == ["coins: ready"]


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StateFolder:
    """A platform that is not up, with two models and a record."""
    found = StateFolder(tmp_path / "state")
    for name in ("coins", "roads"):
        folder = found.objects / "SegmentationModel" / name
        folder.mkdir(parents=True)
        (folder / "spec.yaml").write_text(yaml.safe_dump(model(name)))
    for path in (found.revisions / "coins-1.json", found.groups / "main/a.log"):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    monkeypatch.setenv("SEGSERVE_STATE", str(found.root))
    return found


def test_down_forget_says_which_models_it_removes_and_leaves_nothing(command: Command, state: StateFolder) -> None:
    assert command("down", "--forget") == (0, "no platform was running; models removed: coins, roads\n", "")
    assert not state.root.exists()


def test_down_leaves_models_and_their_revisions(command: Command, state: StateFolder) -> None:
    printed = "no platform was running; models kept for the next `segserve up`: coins, roads (--forget removes them)\n"

    assert command("down") == (0, printed, "")
    assert {path.name for path in state.root.iterdir()} == {"objects", "revisions"}


@pytest.mark.parametrize("below", ["", "/below"])
@pytest.mark.parametrize("arguments", [("up",), ("apply", "--local")])
def test_a_file_in_the_place_of_the_state_folder_is_named_with_the_variable(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], below: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "pool.yaml").write_text(
        "apiVersion: segserve.dev/v1alpha1\nkind: TritonPool\nmetadata: {name: default}\nspec: {}\n"
    )
    monkeypatch.setenv("SEGSERVE_STATE", f"{tmp_path}/file{below}")

    code, _, complaint = command(*arguments, "-f", tmp_path / "pool.yaml")

    assert code == 1
    assert complaint.endswith(f"{tmp_path}/file is a file, not a folder; set SEGSERVE_STATE to another folder\n")


def test_forgetting_at_the_end_of_a_detached_platform_is_an_error_of_the_command_line(command: Command) -> None:
    code, _, complaint = command("up", "--detach", "--forget")

    assert (code, "segserve down" in complaint) == (2, True)


def test_logs_of_a_container_that_there_is_not_name_those_that_there_are(command: Command, state: StateFolder) -> None:
    complaint = "error: no container 'foo'; there are: agent, triton\n"

    assert command("logs", "coins", "-c", "foo") == (1, "", complaint)
    assert command("logs", "coins", "-c", "agent")[0] == 0


def test_logs_of_a_machine_without_gpu_have_no_errors_of_cuda(
    command: Command, state: StateFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = 'E1126 04:13:57.6 1 scheduler.cc:14] "unable to create stream: CUDA driver version is insufficient for ..."'
    (state.groups / "main").mkdir(parents=True, exist_ok=True)
    (state.groups / "main/triton.log").write_text(f"{said}\nI1126 Started\n")
    monkeypatch.setattr(local, "NVIDIA_DRIVER", tmp_path / "absent")

    assert command("logs", "-c", "triton")[1] == "groups/main/triton | I1126 Started\n"
    monkeypatch.setattr(local, "NVIDIA_DRIVER", tmp_path)
    assert said in command("logs", "-c", "triton")[1]


@pytest.mark.parametrize(("name", "ours"), [("serve", "up"), ("ls", "get"), ("infer", "predict")])
def test_other_tools_names_of_commands_are_answered_with_ours(command: Command, name: str, ours: str) -> None:
    code, _, complaint = command(name, "-x")

    assert (code, f"it is `segserve {ours}`" in complaint) == (2, True)


def test_a_folder_that_is_no_golden_set_has_no_digest(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")

    code, printed, complaint = command("golden", "digest", tmp_path)

    assert (code, printed) == (1, "")
    assert "is not a golden set: it has no golden.json" in complaint


@pytest.mark.parametrize("share", ["some", "-0.1", "1.5", "nan", ""])
def test_a_share_of_logged_requests_is_refused_before_anything_is_stored(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: str
) -> None:
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "state"))

    code, _, complaint = command("up", "--access-log", share)

    assert code == 2
    assert "must be off, errors, all, or a share from 0 to 1" in " ".join(complaint.replace("│", " ").split())
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("odd", [*" \t'\"\\$&|;<>()*?[]#!{}`^", "\n", "\u00a0", "\u3000"])
@pytest.mark.parametrize("variable", ["SEGSERVE_STATE", "SEGSERVE_CACHE"])
def test_a_folder_whose_path_a_shell_would_split_is_refused_at_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, odd: str
) -> None:
    for each in ("SEGSERVE_STATE", "SEGSERVE_CACHE"):
        monkeypatch.setenv(each, str(tmp_path / ("a" + odd + "b" if each == variable else "plain")))

    code, _, complaint = command("up")

    assert code == 1
    assert f"Triton cannot start its steps below a path with {odd!r}" in complaint
    assert f"set {variable} to another folder" in complaint


@pytest.mark.parametrize("name", ["jürgen", "a-b_c.d", "x:y,z=1@2%3+4~", "数据"])
def test_a_folder_of_other_letters_is_no_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / name))
    monkeypatch.setenv("SEGSERVE_CACHE", str(tmp_path / name))

    local.check_state_folder(local.local_store())


def test_a_disk_without_room_is_refused_at_once(
    command: Command, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LEAST_FREE", 2**80)

    code, _, complaint = command("up")

    assert code == 1
    assert f"the state folder {str(state.root)!r} cannot be used: its disk has" in complaint


@pytest.mark.parametrize("phase", [None, *Phase])
def test_a_model_is_up_while_a_rollout_decides_on_its_newest_spec(phase: Phase | None) -> None:
    rolls = phase is not None and phase not in ENDED
    at = records.coins(None if phase is None else records.standing(phase=phase))
    shown = conditions("Serving", Ready="True", Progressing="True", Degraded="False")
    at["status"]["conditions"] = [each | {"observedGeneration": 1} for each in shown]
    lines = list(Startup(["coins"]).ready_lines([at]))

    assert is_up(at) is rolls
    assert len(lines) == rolls
    if rolls:
        assert "; a rollout is in progress: coins-" in lines[0]


def test_a_wait_that_is_over_shows_the_newest_line_of_the_logs(state: StateFolder) -> None:
    log = state.groups / "main/triton.log"
    log.write_text("first\nE1130 stub died: Expected 9 arguments, found 3\n\n")
    os.utime(state.groups / "main/a.log", (1, 1))

    text = local.LocalPlatform().last_words("coins")

    assert text == "; the last line of groups/main/triton: E1130 stub died: Expected 9 arguments, found 3"
