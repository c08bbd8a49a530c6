"""One truth about what is wrong: every view gives the same reason and the same advice for the same state."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from fakes import rollout_records as records
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.phases import Phase
from segserve_platform.cli import resources, why
from segserve_platform.cli.models_view import model_text
from segserve_platform.cli.rollout.render import RolloutTree
from segserve_platform.platforms.advice import ADVICE
from segserve_platform.platforms.errors import NotServingError
from segserve_platform.platforms.port import PlatformEvent
from segserve_platform.platforms.rollouts.documents import forecast_of
from segserve_platform.platforms.rollouts.rollout_view import RolloutView, read_rollout
from segserve_platform.platforms.waiting import PASSING_REASONS, Serving, readiness
from segserve_ui.models import state_of_model

from .conftest import Command, conditions
from .rollout_platform import RolloutPlatform

# A reason that no table knows, each that has an advice, and one that passes by itself.
REASONS = ("Unheard", *sorted(ADVICE), "Unschedulable")
MESSAGE = "it is as it is"
PHASES = (None, *Phase)


def state(reason: str, phase: Phase | None, answers: bool, message: str = MESSAGE) -> Any:
    """Return a model with a fault in a phase of its rollout."""
    model = records.coins(None if phase is None else records.standing(phase=phase, weight=0))
    model["status"]["conditions"] = [
        each | {"observedGeneration": 1}
        for each in (
            *conditions("Serving" if answers else "NoStable", "", Ready=str(answers)),
            *conditions(reason, message, Degraded="True", Stalled=str(reason not in PASSING_REASONS)),
        )
    ]
    return model


def drawn(view: RolloutView, **how: Any) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=how.pop("width", 1000)).print(RolloutTree(view, forecast_of(view), **how))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def view_of(model: Any) -> RolloutView | None:
    found = records.record()
    return read_rollout(RolloutPlatform([model], {found.name: records.manifest(found)}), model)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.label if phase else "no rollout")
def test_each_fault_in_each_phase_is_the_same_in_every_view(phase: Phase | None) -> None:
    for reason in REASONS:
        for answers in (True, False):
            model = state(reason, phase, answers)
            found, described = readiness(model), model_text(model, None).splitlines()
            page = state_of_model(model)

            said = f"{reason}: {MESSAGE}"
            assert found.text == said
            assert described[0] == f"coins: {found.state}, {said}"
            assert page["word"] == found.state
            assert said in page["text"]
            if reason in PASSING_REASONS:
                assert not found.failed
                continue
            assert found.failed
            assert found.advice
            assert f"next: {found.advice}" == described[1]
            assert found.advice in page["text"]
            with pytest.raises(NotServingError) as refused:
                Serving("coins").reached(model)
            assert str(refused.value) == f"coins: {found.problem}" == f"coins: {said}; {found.advice}"
            view = view_of(model)
            assert (view is None) == (phase is None)
            if view is not None and not view.standing.ended:
                assert any(said in line for line in drawn(view))
                assert any(found.advice in line for line in drawn(view))
                assert view.exit_code == int(phase is Phase.PENDING)


@dataclass
class OneModel:
    """A platform that runs and has one model."""

    only: Any

    def runs(self) -> bool:
        return True

    def model(self, name: str) -> Any:
        return self.only

    def models(self) -> list[Any]:
        return [self.only]

    def rollouts(self) -> list[Any]:
        return []

    def events(self, name: str) -> list[PlatformEvent]:
        return [PlatformEvent(time.time(), "model coins", True, "Failed", "so it went"),
                PlatformEvent(time.time(), "gateway", True, "Started", "so it went on")]  # fmt: skip

    def access_log(self, since_s: float) -> None:
        return None


@pytest.mark.parametrize("reason", ["DigestMismatch", "Unheard"])
def test_the_commands_print_that_reason_and_that_advice(
    command: Command, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    model = state(reason, None, answers=True)
    for module in (resources, why):
        monkeypatch.setattr(module, "selected_platform", lambda _: OneModel(model))

    assert command("get")[1].splitlines()[-1] == f"coins: {readiness(model).problem}"
    assert readiness(model).problem in command("why", "coins")[1]


def test_a_message_that_names_its_command_gets_no_other_advice() -> None:
    held = state("DeadlinePassed", Phase.PROGRESSING, True, "undecided: `segserve rollout promote coins` or `abort`")

    assert readiness(held).problem == "DeadlinePassed: undecided: `segserve rollout promote coins` or `abort`"


def test_a_revision_that_was_rolled_back_may_be_tried_again() -> None:
    lost = state("WorseThanStable", Phase.ROLLED_BACK, True)

    assert "`segserve rollout retry coins`" in readiness(lost).advice


def test_a_description_begins_with_the_state_and_ends_with_the_spec_without_defaults() -> None:
    model = state("GoldenFailed", None, answers=True)
    artifact = {"uri": "file:///net.onnx", "sha256": "0" * 64}
    model["spec"] = {
        "artifact": artifact,
        "family": "semantic-logits",
        "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}],
        "preprocess": [{"decode": {}}],
        "postprocess": [{"argmax": {}}],
        "pool": "default",
    }
    (event, *others) = resources.event_lines("model coins", lambda: OneModel(model).events("coins"))

    lines = model_text(model, None, (event, *others)).splitlines()

    assert [line.partition(":")[0] for line in lines if line[:1].isalpha()] == [
        "coins", "next", "url", "roles", "conditions", "events", "metadata", "spec",
    ]  # fmt: skip
    assert [line.split()[1:3] for line in others] == [["Warning", "Failed"]]
    assert not any("pool:" in line for line in lines)


def test_a_spec_that_this_version_cannot_read_is_shown_whole() -> None:
    newer = state("Unheard", None, answers=True)
    newer["spec"]["tomorrow"] = 7

    assert "tomorrow: 7" in model_text(newer, None)


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.SHADOW, Phase.PROGRESSING, Phase.BAKING, Phase.ROLLED_BACK])
def test_a_terminal_of_24_lines_shows_all_that_matters(phase: Phase) -> None:
    found = records.record()
    breach = Verdict("latency", Outcome.BREACH, "WorseThanStable", "slower", 1.0, {})
    view = records.seen(
        standing=records.standing(phase=phase),
        record=records.record(verdicts=(*found.verdicts[:1], breach, *found.verdicts[2:])),
    )

    lines, whole = drawn(view, width=80, height=24), drawn(view, width=80)

    assert len(lines) <= 24 < len(whole)
    text, ended = "\n".join(lines), phase is Phase.ROLLED_BACK
    for row in ("latency", "breach", *(("took",) if ended else ("waits for", "deadline"))):
        assert row in text, text
    assert "decisions" in text
