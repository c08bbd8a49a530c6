"""A person's word in a rollout: its help, what is asked of which revision, what came of it, what cannot be asked."""

from __future__ import annotations

import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import rollout_records as records
from fakes.kube_http import FakeServer
from segserve.platform import Local
from segserve_operator.adapters.local.files import STATE_VARIABLE, write_yaml
from segserve_operator.adapters.local.rollouts import RolloutFiles
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.world.observed import RoleHolder, Roles
from segserve_platform.cli.resources import model_description
from segserve_platform.cli.rollout import commands
from segserve_platform.platforms.errors import NotFoundError
from segserve_platform.platforms.local import LocalPlatform
from segserve_platform.platforms.manifests import read_file
from segserve_platform.platforms.port import MODEL
from segserve_platform.platforms.rollouts.actions import request_action

from .conftest import MODELS, Command
from .rollout_platform import RolloutPlatform

ROLLOUTS = "apis/segserve.dev/v1alpha1/segmentationrollouts"
EXAMPLE = Path(__file__).parents[4] / "examples/coins/rollout.yaml"
OLD, NEW = records.STABLE, records.CANDIDATE
ANSWERED: dict[str, tuple[Any, ...]] = {
    "promote": (Phase.PROGRESSING, (), NEW, {"phase": "Baking", "weight": 100}, "Baking at 100 %"),
    "abort": (Phase.PROGRESSING, (), NEW, {"phase": "RolledBack", "weight": 0}, "RolledBack at 0 %"),
    "pause": (Phase.PROGRESSING, (), NEW, {"paused": True}, "Progressing at 25 %, paused"),
    "resume": (Phase.PROGRESSING, (), NEW, {}, "Progressing at 25 %"),
    "rollback": (Phase.BAKING, (), NEW, {"phase": "RolledBack", "weight": 0}, ""),
    "skip-gate": (Phase.PROGRESSING, ("latency",), NEW, {"skippedGates": ["latency"]}, "Progressing at 25 %"),
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> RolloutPlatform:
    """A rollout at its second step; nobody answers."""
    fake = RolloutPlatform([records.coins(records.standing())])
    monkeypatch.setattr(commands, "selected_platform", lambda _: fake)
    return fake


@pytest.mark.parametrize("verb", ANSWERED)
def test_a_verb_names_the_revision_it_is_about_and_tells_what_came_of_it(
    verb: str, command: Command, here: RolloutPlatform
) -> None:
    phase, gate, revision, change, outcome = ANSWERED[verb]
    here.scenes = [records.coins(records.standing(phase=phase))]

    def answer(model: Any, asked: str, value: str) -> Any:
        after = deepcopy(model)
        after["status"]["rollout"] |= {"sequence": 5, "reason": "Asked", "message": "a person said so"} | change
        after["status"]["weight"] = after["status"]["rollout"]["weight"]
        if verb == "rollback":
            roles = after["status"]["roles"]
            after["status"]["roles"] = {"stable": roles["previous"], "candidate": roles["stable"] | {"state": "Failed"}}
        return after

    here.answer = answer

    code, printed, complaint = command("rollout", verb, *gate, "coins")

    assert (code, complaint) == (0, "")
    (key, value) = here.annotations.popitem()
    about = f"{gate[0]}@{revision}" if gate else revision
    assert key == f"segserve.dev/{verb}"
    assert re.fullmatch(rf"{about}@ada@example.org/[0-9a-f]{{6}}", value)
    now = f"{NEW} is {outcome} (Asked: a person said so)" if outcome else f"{OLD} has all requests; {NEW} was left"
    assert printed == f"coins: {now}\n"


SELF = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


@pytest.mark.parametrize(
    ("answer", "user"),
    [
        (httpx.Response(201, json={"status": {"userInfo": {"username": "system:ada"}}}), "system:ada"),
        (httpx.Response(403, json={"kind": "Status", "message": "forbidden"}), ""),
        (httpx.Response(404, json={"kind": "Status", "message": "the server could not find it"}), ""),
    ],
)
def test_a_cluster_knows_its_users_by_the_names_of_its_api_server(answer: httpx.Response, user: str) -> None:
    server = FakeServer(answers={("POST", SELF): lambda _: answer})

    assert server.platform().user() == user


def test_a_user_on_this_machine_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")

    assert LocalPlatform(Local(tmp_path)).user() == "ada"


@pytest.mark.parametrize(("user", "written"), [("", ""), ("a b/c=ü\n", "a_b_c_ü_/"), ("x" * 200, "x" * 100 + "/")])
def test_a_user_is_written_so_that_an_annotation_can_hold_it(
    user: str, written: str, here: RolloutPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RolloutPlatform, "user", lambda _: user)

    goal = request_action(here, "coins", "pause")  # type: ignore[arg-type]

    assert re.fullmatch(rf"{NEW}@{written}[0-9a-f]{{6}}", goal.request.value)


def after_retry(request: str, at: Any, **candidate: Any) -> Any:
    """The failed model once its retry was handled: `candidate` is what changed of it."""
    model = records.coins(at, records.roles_of(records.standing(phase=Phase.ROLLED_BACK)))
    model["status"]["handledAnnotations"] = [request]
    model["status"]["roles"]["candidate"] |= candidate
    return model


def test_a_retry_waits_for_the_new_rollout_and_names_it(command: Command, here: RolloutPlatform) -> None:
    ended = records.standing(phase=Phase.ROLLED_BACK)
    begun = records.standing(phase=Phase.PENDING, rollout="coins-new-2", weight=0, reason="", message="")
    pending = {"state": "Pending", "reason": None, "message": None}
    here.scenes = [records.coins(ended)]

    def answer(model: Any, verb: str, value: str) -> Any:
        request = f"{verb}={value}"
        here.scenes += [after_retry(request, ended, **pending), after_retry(request, ended, group="g", **pending)]
        return after_retry(request, begun, group="g", **pending)

    here.answer = answer

    code, printed, complaint = command("rollout", "retry", "coins")

    assert (code, complaint) == (0, "")
    assert printed == f"coins: rollout coins-new-2: {NEW} is Pending at 0 %\n"


def test_a_retry_that_fails_before_a_rollout_begins_is_an_error_with_the_cause(
    command: Command, here: RolloutPlatform
) -> None:
    ended = records.standing(phase=Phase.ROLLED_BACK)
    here.scenes = [records.coins(ended)]
    here.answer = lambda model, verb, value: after_retry(f"{verb}={value}", ended, message="still not")

    code, printed, complaint = command("rollout", "retry", "coins")

    assert (code, printed) == (1, "")
    assert complaint.startswith(f"error: coins: retry: {NEW} has failed again")
    assert complaint.endswith(": NoProof: still not\n")


def test_what_was_answered_but_not_met_is_an_error(command: Command, here: RolloutPlatform) -> None:
    here.answer = lambda model, verb, value: deepcopy(model)

    code, printed, complaint = command("rollout", "promote", "coins")

    assert (code, printed) == (1, "")
    assert complaint.startswith(f"error: coins: {NEW} is Progressing at 25 %")
    assert "promote came too late or was refused" in complaint


def test_the_same_verb_asks_again_with_another_token(command: Command, here: RolloutPlatform) -> None:
    values = []
    for _ in range(2):
        command("rollout", "pause", "coins", "--timeout", "0s")
        values.append(here.annotations["segserve.dev/pause"])

    assert values[0] != values[1]


def test_what_nobody_answers_stays_asked_and_is_an_error(command: Command, here: RolloutPlatform) -> None:
    code, _, complaint = command("rollout", "abort", "coins", "--timeout", "1s")

    assert code == 1
    assert "was not handled within 1 s and stays in place (segserve.dev/abort: coins-8d6f11d641@" in complaint
    assert "segserve doctor" in complaint
    assert "segserve.dev/abort" in here.annotations


def test_who_does_not_wait_is_told_what_was_written(command: Command, here: RolloutPlatform) -> None:
    code, printed, _ = command("rollout", "abort", "coins", "--timeout", "0s")

    assert code == 0
    assert printed == f"requested: segserve.dev/abort: {here.annotations['segserve.dev/abort']}\n"


REFUSED: dict[str, tuple[Any, ...]] = {
    "promote, which is not proved": (("promote",), Phase.PENDING, {}, "not possible while the rollout is Pending"),
    "promote, which has ended": (
        ("promote",),
        Phase.SUCCEEDED,
        {},
        "no rollout is in progress; that of coins-8d6f11d641 is",
    ),
    "abort, which has ended": (("abort",), Phase.ROLLED_BACK, {}, "that of coins-8d6f11d641 is RolledBack"),
    "pause twice": (("pause",), Phase.PROGRESSING, {"paused": True}, "is paused already"),
    "resume after the end": (("resume",), Phase.CANCELLED, {}, "no rollout is in progress"),
    "retry of nothing": (("retry",), Phase.PROGRESSING, {}, "no revision has failed"),
    "rollback to nothing": (("rollback",), Phase.PROGRESSING, {}, "no former revision is kept beside coins-f3ce7142e5"),
    "an unknown gate": (
        ("skip-gate", "latenzy"),
        Phase.GOLDEN,
        {},
        "unknown gate 'latenzy'; known: errorRate, latency",
    ),
    "a gate twice": (("skip-gate", "latency"), Phase.GOLDEN, {"skipped": ("latency",)}, "latency is skipped already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    case: str, command: Command, here: RolloutPlatform
) -> None:
    verb, phase, changes, why = REFUSED[case]
    here.scenes = [records.coins(records.standing(phase=phase, **changes))]

    code, _, complaint = command("rollout", *verb, "coins")

    assert code == 1
    assert complaint.startswith(f"error: coins: {verb[0]}: ")
    assert why in complaint
    assert here.annotations == {}


def test_a_model_without_a_rollout_or_without_a_policy_has_nothing_to_ask_about(
    command: Command, here: RolloutPlatform
) -> None:
    here.scenes = [records.coins(None)]
    _, _, none = command("rollout", "promote", "coins")
    here.scenes = [records.coins(None, rollout=None)]
    _, _, never = command("rollout", "abort", "coins")
    here.scenes = [records.coins(None, Roles())]
    _, _, nothing = command("rollout", "rollback", "coins")

    assert none == "error: coins: promote: no rollout is in progress\n"
    assert "without `spec.rollout`, a revision is promoted as soon as it is ready" in never
    assert "no revision is stable" in nothing


def test_a_rollback_after_the_end_leaves_the_stable_revision(command: Command, here: RolloutPlatform) -> None:
    old, new = RoleHolder(OLD, "main", 0.0), RoleHolder(NEW, "own", 0.0)
    here.scenes = [records.coins(records.standing(phase=Phase.SUCCEEDED), Roles(stable=new, previous=old))]

    command("rollout", "rollback", "coins", "--timeout", "0s")

    assert here.annotations["segserve.dev/rollback"].startswith(f"{NEW}@")


def test_on_a_cluster_an_annotation_is_merged_and_nothing_else_is_touched(server: FakeServer) -> None:
    server.put(MODELS, records.coins(records.standing()))

    server.platform().annotate(MODEL, "coins", {"segserve.dev/abort": NEW})

    path, body = server.sent("PATCH")[-1]
    assert path.endswith("/namespaces/lab/segmentationmodels/coins")
    assert body == {"metadata": {"annotations": {"segserve.dev/abort": NEW}}}
    assert server.requests[-1].headers["content-type"] == "application/merge-patch+json"
    with pytest.raises(NotFoundError, match="no SegmentationModel 'roads' in namespace 'lab'; there are: coins"):
        server.platform().annotate(MODEL, "roads", {})


def test_on_a_cluster_records_are_listed_and_read(server: FakeServer) -> None:
    server.put(ROLLOUTS, records.manifest(records.record()))
    here = server.platform()

    assert [each["metadata"]["name"] for each in here.rollouts()] == [records.NAME]
    assert here.rollout(records.NAME) is not None
    assert here.rollout("coins-none-1") is None


def test_a_description_has_the_rollout_its_gates_and_who_decided_what(server: FakeServer) -> None:
    server.put(MODELS, records.coins(records.standing(paused=True, skipped=("latency",))))
    server.put(ROLLOUTS, records.manifest(records.record()))

    lines = model_description(server.platform(), "coins").splitlines()

    said = lines[lines.index(f"rollout: {records.NAME}") + 1 :]
    assert said[0].startswith(f"  {NEW} is Progressing at 25 %, paused since ")
    assert any(
        line.startswith("  gate goldenQuality   Pass      NoWorse: mean quality changes by +0.0012 ") for line in said
    )
    assert any(line.startswith("  gate latency ") and line.endswith("(skipped)") for line in said)
    assert any(line.endswith("25 %  StepDone: the evidence allows the next weight (segserve)") for line in said)


def test_on_this_machine_a_verb_is_written_beside_the_spec_and_records_are_files(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path))
    here = LocalPlatform()
    here.apply(read_file(EXAMPLE))
    status = records.coins(records.standing())["status"]
    write_yaml(tmp_path / "objects/SegmentationModel/coins/status.yaml", status)
    RolloutFiles(tmp_path / "objects").write(records.record())

    asked = command("rollout", "pause", "coins", "--timeout", "0s", "--local")
    shown = command("rollout", "status", "coins", "--local")
    listed = command("rollout", "list", "--local")

    assert asked[0] == 0
    assert here.model("coins")["metadata"]["annotations"]["segserve.dev/pause"].startswith(f"{NEW}@")
    assert "step 2 of 3" in shown[1]
    assert listed[1].splitlines()[1].startswith(records.NAME)
    assert f"rollout: {records.NAME}" in model_description(here, "coins")


def test_the_command_line_loads_no_engine_until_a_rollout_is_asked_about() -> None:
    code = (
        "import segserve_platform.cli.app, sys; "
        "heavy = ('segserve_operator.core', 'segserve_operator.adapters', 'scipy', 'pydantic'); "
        "print(*[name for name in sys.modules if name.startswith(heavy)])"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "\n"
