"""`rollout status`: the tree, what each row says, how a watch ends, and what programs get."""

from __future__ import annotations

import io
import json
import re
import time
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from fakes import rollout_records as records
from segserve_operator.api.rollout_policy import Shadow, Slo
from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.engine import Wait
from segserve_operator.core.rollout.forecast import Forecast
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import PairRow, Row
from segserve_platform.cli.models_view import models_table
from segserve_platform.cli.rollout import commands
from segserve_platform.cli.rollout.render import RolloutTree, bar
from segserve_platform.cli.rollout.status import follow
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.rollouts.documents import forecast_of
from segserve_platform.platforms.rollouts.rollout_view import RolloutView, read_rollout
from segserve_platform.platforms.rollouts.words import about, awaited, latency, span
from segserve_platform.platforms.waiting import readiness

from .conftest import Command
from .rollout_platform import RolloutPlatform

DOCUMENTED = Path(__file__).parents[4] / "docs/images/rollout-status.svg"
ENDS = {Phase.SUCCEEDED: 0, Phase.ROLLED_BACK: 1, Phase.CANCELLED: 1}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> RolloutPlatform:
    """A rollout that began 270 s ago."""
    found = records.record(time.time() - 270)
    fake = RolloutPlatform([records.coins(records.standing(found))], {found.name: records.manifest(found)})
    monkeypatch.setattr(commands, "selected_platform", lambda _: fake)
    monkeypatch.setattr("segserve_platform.cli.rollout.status.WATCH_S", 0.0)
    return fake


def drawn(seen: Any, *, encoding: str = "utf-8", width: int = 170, **how: Any) -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=False, color_system=None)
    console.print(RolloutTree(seen, forecast_of(seen), **how))
    file.seek(0)
    return [line.rstrip() for line in file.read().splitlines()]


def words(line: str) -> str:
    return " ".join(line.split())


def said(seen: Any, **how: Any) -> str:
    return " | ".join(words(line) for line in drawn(seen, width=400, **how))


def ended(phase: Phase, **changes: Any) -> Any:
    return records.coins(
        records.standing(phase=phase, step=2, weight=100 if phase is Phase.SUCCEEDED else 0, **changes)
    )


def test_present_rates_are_those_since_the_weight_changed() -> None:
    at_25 = Row(records.STARTED_S + 270, 15.0, 25, (450, 150), (0, 0))
    at_50 = Row(records.STARTED_S + 280, 10.0, 50, (200, 200), (0, 0))
    at_0 = Row(records.STARTED_S + 290, 10.0, 0, (400, 0), (0, 0))

    stable, candidate = records.seen(record=records.record(rows=(at_25, at_50))).present_sides()
    quarantined = records.seen(record=records.record(rows=(at_25, at_50, at_0))).present_sides()[1]
    just_moved = records.seen(record=records.record(rows=(at_25, replace(at_50, seconds=1.0)))).present_sides()[1]

    assert (stable.requests_per_second, candidate.requests_per_second) == (20.0, 20.0)
    assert quarantined.requests_per_second == 0.0
    assert just_moved.requests == 350


def refused() -> dict[str, Any]:
    """Return a model whose newest revision cannot be loaded: its artifact has another digest."""
    waiting = records.standing(phase=Phase.PENDING, weight=0, step=-1, reason="Proving")
    model = records.coins(waiting)
    conditions = {"Degraded": ("True", "DigestMismatch", "its sha256 is another"), "Ready": ("True", "Serving", "")}
    model["status"]["conditions"] = [
        {"type": kind, "status": status, "reason": reason, "message": message}
        | {"observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind, (status, reason, message) in conditions.items()
    ]
    return model


def test_a_revision_that_cannot_be_loaded_has_one_reason_in_get_wait_and_rollout_status() -> None:
    model, found = refused(), records.record()

    view = read_rollout(RolloutPlatform([model], {found.name: records.manifest(found)}), model)

    assert view is not None
    assert view.problem == readiness(model).problem
    assert view.exit_code == 1
    assert view.problem in said(view).partition(" | ")[0]
    assert "waits for ◐ you: change the model and apply it, or `segserve rollout abort coins`" in said(view)


def test_after_the_end_no_gate_is_measuring_and_no_step_is_to_come() -> None:
    over = records.seen(standing=records.standing(phase=Phase.ROLLED_BACK, weight=0))

    shown = said(over)

    assert "measuring" not in shown
    assert "to come" not in shown
    assert "later" not in shown


def in_shadow() -> RolloutView:
    """Return a rollout that was asked 120 copies in 27 s."""
    found = records.record()
    policy = found.policy.model_copy(update={"shadow": Shadow()})
    row = Row(records.STARTED_S + 68, 27.0, 0, (1080, 0), (0, 0), pairs=PairRow((120, 0, 0, 0)))
    progress = replace(
        found.progress,
        phase=np.array(Phase.SHADOW, np.int8),
        step=np.array(-1, np.int8),
        seen=np.array(120.0),
        step_since_s=np.array(records.STARTED_S + 41),
    )
    begun = replace(found.decisions[2], signal="SHADOW_BEGINS", phase=Phase.SHADOW, weight=0)
    decisions = (*found.decisions[:2], begun)
    found = replace(found, policy=policy, progress=progress, rows=(row,), decisions=decisions, verdicts=(), gates={})
    at = records.standing(
        found, weight=0, step=-1, since_s=records.STARTED_S + 41, step_since_s=records.STARTED_S + 41, reason=""
    )
    return RolloutView("coins", at, records.STABLE, found, records.STARTED_S + 68, Present.of(records.coins(at)))


def test_shadow_says_how_many_copies_are_compared_and_how_long_it_takes_at_most() -> None:
    lines = [words(line) for line in drawn(in_shadow(), width=400)]

    at = next(number for number, line in enumerate(lines) if "steps" in line)
    assert lines[0] == (
        "coins: no requests yet, 120 of 200 copied requests compared for 27s; healthy so far in 120 requests; "
        "at most 9m33s to its first step and about 24 min to the end at this rate."
    )
    assert lines[at + 1 : at + 3] == ["│ ├─ Shadow ◐ now 120 of 200 copied requests compared", "│ ├─ 5 % ○ to come"]
    assert any("waits for ◐ copies of callers' requests to compare" in line for line in lines)


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("ConfidenceShifted", "its scores have shifted"),
        ("MasksDiffer", "its masks differ"),
    ],
)
def test_a_hold_in_shadow_says_what_a_person_has_to_decide(reason: str, why: str) -> None:
    view = in_shadow()
    held = replace(view.record, verdicts=(Verdict("maskAgreement", Outcome.UNDECIDED, reason, ""),))
    outlook = Forecast(0.0, wait=Wait.PERSON)

    assert awaited(replace(view, record=held), outlook).startswith(f"you, as {why}: ")


def test_shadow_is_done_afterwards_and_steps_that_it_left_out_are_named() -> None:
    view = in_shadow()
    first = replace(view.record.decisions[2], sequence=4, signal="SHADOW_PASSED", phase=Phase.PROGRESSING, weight=25)
    record = replace(view.record, decisions=(*view.record.decisions, replace(first, at_s=records.STARTED_S + 60)))
    standing = replace(view.standing, phase=Phase.PROGRESSING, step=1, weight=25)
    lines = [words(line) for line in drawn(replace(view, standing=standing, record=record))]

    at = next(number for number, line in enumerate(lines) if "steps" in line)
    assert lines[at + 1] == "│ ├─ Shadow ● done began 27s ago"
    assert lines[at + 2] == "│ ├─ 5 % ● left out"
    assert lines[at + 3].startswith("│ ├─ 25 % ◐ now")

    lost = replace(view.standing, phase=Phase.ROLLED_BACK)
    assert "Shadow ✗ stopped began 27s ago" in said(replace(view, standing=lost))


def test_a_rollout_that_only_judges_awaits_its_verdict_and_shows_no_promotion_to_come() -> None:
    view = in_shadow()
    record = replace(view.record, policy=view.record.policy.model_copy(update={"strategy": "shadow"}))
    lines = [words(line) for line in drawn(replace(view, record=record), width=400)]

    assert lines[0].endswith("at most 9m33s to its verdict.")
    assert not any("promotion" in line or "to come" in line for line in lines)

    standing = replace(view.standing, phase=Phase.JUDGED, reason="JudgedWell", message="judged well: in 120 copies")
    judged = replace(view, record=record, standing=standing)
    text = said(judged)

    assert text.startswith(f"coins: judged well: in 120 copies; {records.STABLE} has all requests.")
    assert "Shadow ● done" in text


@pytest.mark.parametrize(
    ("reason", "code"),
    [("JudgedWell", 0), ("JudgedUndecided", 4)],
)
def test_a_verdict_is_told_by_the_exit_code(reason: str, code: int) -> None:
    view = in_shadow()

    assert replace(view, standing=replace(view.standing, phase=Phase.JUDGED, reason=reason)).exit_code == code


def test_statistics_are_behind_wide() -> None:
    text = said(records.seen(), wide=True)

    assert "gates ○ alpha 1 %" in text
    assert "errorRate ● Pass ░░░░░░░░░░░░░░░░ 0 % NoWorse 0.0595 % of 1,680 requests failed" in text
    assert "evidence 1:1 of 1:300; at most 0.5 % of its requests are worse off" in text
    assert "reason ◐ HarmNotBounded at the next weight it could still do more harm" in text
    assert "candidate 25 % 10 0.33 % 35 ms 74 ms 1,680" in text


def test_what_has_happened_is_nothing_to_wait_for() -> None:
    just_moved = records.standing(reason="GoldenPassed", message="the golden images were answered well enough")

    text = said(replace(records.seen(standing=just_moved), record=records.record(decisions=())))

    assert "golden images were answered" not in text
    assert "waits for ◐ about 1,700 more requests to the candidate" in text


def test_the_slo_is_shown_with_what_both_revisions_use_of_it() -> None:
    slo = Slo(error_percent=1, p95_milliseconds=47)
    strict = records.seen(record=records.record(slo=slo), slo="Breached")

    text = said(strict)

    assert "SLO ✗ Breached errors at most 1 %, p95 at most 47 ms; used in the last 5 min: stable" in text
    assert re.search(r"stable \d{3,} % and candidate \d{3,} % of what it allows", text)
    assert "SLO ● Met" in said(records.seen(slo="Met"))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.PROGRESSING, Phase.ROLLED_BACK])
def test_words_are_whole_at_any_width(wide: bool, phase: Phase) -> None:
    seen = records.seen(standing=records.standing(phase=phase))
    known = set(" ".join(drawn(seen, width=1000, wide=wide)).split())

    for width in (80, 130):
        lines = drawn(seen, width=width, wide=wide)
        assert all(len(line) <= width for line in lines), width
        assert {word for line in lines for word in line.split()} <= known, width


def test_without_requests_it_says_so_instead_of_a_time() -> None:
    rows = records.record().rows
    quiet = tuple(Row(rows[-1].at_s + at_s, 1.0, 25, (0, 0), (0, 0)) for at_s in range(1, 21))
    seen = records.seen(record=records.record(rows=(*rows, *quiet)), now_s=records.STARTED_S + 290)

    lines = drawn(seen)

    assert lines[0].endswith("healthy so far in 1,680 requests; it waits for requests: none in the last 20s.")
    assert words(lines[4]) == f"◐ candidate 25 % 0 - - - {records.CANDIDATE}"


def test_evidence_against_the_candidate_is_told_before_it_is_proof() -> None:
    def at(progress: float) -> str:
        verdict = replace(records.record().verdicts[1], progress=progress)
        return said(records.seen(record=records.record(verdicts=(verdict,))))

    assert "it may be worse (latency)" in at(0.31)
    assert "31 % of the evidence that would roll it back" in at(0.31)
    assert "it looks worse (latency)" in at(0.7)
    assert "latency ◐ looks worse" in at(0.7)
    assert "healthy so far" in at(0.1)


@pytest.mark.parametrize("reason", ["NoAnswer", "GoldenUnavailable"])
def test_a_gate_without_evidence_that_passes_does_not_look_like_one_that_knows_nothing(reason: str) -> None:
    golden = records.GOLDEN
    unknown = replace(golden, outcome=Outcome.UNDECIDED, reason=reason, message="the answer lacks MASKS", numbers={})

    assert "goldenQuality ● pass 0.1 points better" in said(records.seen(record=records.record(verdicts=(golden,))))
    text = said(records.seen(record=records.record(verdicts=(unknown,))))
    assert "goldenQuality ◐ no result the answer lacks MASKS" in text
    assert "it waits for a pass of goldenQuality" in text


def test_who_asked_is_named_and_an_annotation_by_hand_by_its_token() -> None:
    record = records.record()
    by_ada = replace(record.decisions[-1], actor=f"promote={records.CANDIDATE}@ada/3f2a1c")
    by_hand = replace(record.decisions[-2], actor=f"resume={records.CANDIDATE}@monday")
    seen = records.seen(
        record=records.record(decisions=(by_hand, by_ada)),
        handled=(f"skip-gate=latency@{records.CANDIDATE}@bob/77aa00", f"abort={records.STABLE}@eve/000000"),
        standing=records.standing(skipped=("latency",)),
    )

    text = said(seen)

    asked = f"asked by ○ ada: promote 2m17s ago; annotation {records.CANDIDATE}@monday: resume 3m49s ago"
    assert f"{asked}; bob: skip-gate latency" in text
    assert "latency ○ skipped ignored in this rollout by bob" in text
    assert "the evidence allows the next weight (ada: promote)" in text
    assert "eve" not in text


def test_the_deadline_is_told_from_the_last_resume_and_not_while_a_person_holds_it() -> None:
    resumed = records.seen(standing=records.standing(resumed_s=records.STARTED_S + 133))
    record = records.record()
    paused = records.seen(
        standing=records.standing(paused=True),
        record=replace(record, progress=replace(record.progress, paused=np.array(True))),
        handled=(f"pause={records.CANDIDATE}@ada/3f2a1c",),
    )

    assert "deadline ○ in 5h57m, then it waits for you" in said(resumed)
    assert "deadline ○ 6h after it is resumed" in said(paused)
    assert "it waits for you, as it is paused by ada: `segserve rollout resume coins` continues" in said(paused)


def test_a_passed_deadline_says_who_has_to_act() -> None:
    late = records.standing(
        reason="DeadlinePassed", message="still undecided at the deadline; it holds as the policy says"
    )

    text = said(records.seen(standing=late, now_s=records.STARTED_S + 7 * 3600))

    assert "deadline ○ passed: undecided for 6h, so it waits for you" in text
    assert "`segserve rollout promote coins` or `abort`" in text
    assert "counted ◐ no requests for 6h55m" in text


def test_wide_adds_the_numbers_and_all_decisions() -> None:
    many = records.record().decisions * 3
    seen = records.seen(record=records.record(decisions=many))

    brief, wide = ("\n".join(drawn(seen, wide=each, width=400)) for each in (False, True))

    assert "(images 64, iou 0.9814, meanChange 0.0012)" in wide
    assert "meanChange" not in brief
    assert (brief.count(" ago  "), wide.count(" ago  ")) == (4, 12)
    assert "8 earlier ones; -o wide shows all" in brief


@pytest.mark.parametrize("phase", [Phase.BAKING, Phase.SUCCEEDED])
def test_a_promoted_revision_is_the_stable_one(phase: Phase) -> None:
    lines = drawn(records.seen(standing=records.standing(phase=phase, weight=100, reason="", message="")))

    assert words(lines[3]).startswith("● stable")
    assert lines[3].endswith(records.CANDIDATE)
    assert words(lines[4]).startswith("○ previous")
    assert ("watched for 10m, 6m11s to go" in "".join(lines)) == (phase is Phase.BAKING)


ENDINGS = {
    Phase.PENDING: "coins: no requests yet: its servers are loading and proving it, for 3m49s so far.",
    Phase.GOLDEN: "coins: no requests yet: it is loaded, and its golden images are being judged.",
    Phase.QUARANTINED: "coins: no requests for 3m49s: it failed while stable answered; segserve's own requests find "
    "out whether it recovers (quarantine 1 of 3).",
    Phase.SUCCEEDED: f"coins: the rollout of {records.CANDIDATE} succeeded after 41s; {records.CANDIDATE} has all "
    "requests.",
    Phase.ROLLED_BACK: f"coins: the rollout of {records.CANDIDATE} was rolled back after 41s: {records.MESSAGE}; "
    f"{records.STABLE} has all requests.",
    Phase.CANCELLED: f"coins: the rollout of {records.CANDIDATE} was cancelled after 41s: {records.MESSAGE}; "
    f"{records.STABLE} has all requests (it ended 3m49s ago).",
}


@pytest.mark.parametrize("phase", ENDINGS)
def test_each_phase_has_its_sentence(phase: Phase) -> None:
    assert drawn(records.seen(standing=records.standing(phase=phase)), width=400)[0] == ENDINGS[phase]


@pytest.mark.parametrize(
    ("phase", "missing"),
    [
        (Phase.PENDING, "its servers to load and prove it"),
        (Phase.GOLDEN, "its golden images to be judged"),
        (Phase.PROGRESSING, "about 1,700 more requests to the candidate"),
        (Phase.BAKING, "the end of the bake, in 6m11s"),
    ],
)
def test_each_phase_says_what_is_missing(phase: Phase, missing: str) -> None:
    record = records.record()
    progress = replace(record.progress, phase=np.array(phase, np.int8), step_since_s=np.array(records.STARTED_S + 41))
    standing = records.standing(phase=phase)
    found = record if phase is Phase.PROGRESSING else replace(record, progress=progress)

    assert f"waits for ◐ {missing} |" in said(records.seen(standing=standing, record=found))


def test_a_rollback_names_the_gate_and_what_it_found() -> None:
    numbers = {"candidate_requests": 120.0, "candidate_errors": 6.0, "stable_requests": 2280.0, "stable_errors": 0.0}
    breach = Verdict("errorRate", Outcome.BREACH, "WorseThanStable", "5 % of 120 ...", 1.0, numbers)
    seen = records.seen(
        standing=records.standing(phase=Phase.ROLLED_BACK, weight=0), record=records.record(verdicts=(breach,))
    )

    lines = drawn(seen)

    assert "rolled back after 41s: errorRate: 5 % of its 120 requests failed, 0 % of stable's 2,280;" in lines[0]
    assert "errorRate ✗ breach 5 % of its 120 requests failed" in " | ".join(map(words, lines))


def test_a_quarantine_a_skipped_gate_and_a_pause_are_shown() -> None:
    at = records.standing(phase=Phase.QUARANTINED, weight=0, quarantines=2, skipped=("latency",), paused=True)

    text = "\n".join(drawn(records.seen(standing=at), wide=True))

    assert "✗ Quarantined" in text
    assert "2 of 3" in text
    assert "latency        ○ skipped" in text
    assert "paused" in text
    assert "because" in text


def test_a_rollout_whose_record_was_not_written_yet_is_shown_by_its_status() -> None:
    lines = drawn(records.seen(record=None))

    assert lines[0] == ("coins: 25 % of requests for 2m17s; not judged yet; nothing is recorded of it yet.")
    assert words(lines[4]).endswith(f"25 % {records.CANDIDATE}")


def test_hung_requests_have_no_latency_and_a_breach_of_the_slo_is_red() -> None:
    rows = (Row(records.STARTED_S + 270, 1.0, 50, (10, 10), (0, 5), (((30, 10),), ((len(EDGES_MS), 10),))),)
    seen = records.seen(record=records.record(rows=rows))
    file = io.StringIO()

    Console(file=file, width=170, color_system="standard", force_terminal=True, no_color=False).print(RolloutTree(seen))

    assert "\x1b[31m  50 %\x1b[0m" in file.getvalue()
    assert "hung" in file.getvalue()


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text = "\n".join(drawn(records.seen(), encoding="ascii"))

    assert text.isascii()
    assert "|   |-- latency        ~ measuring" in text
    assert "+ stable" in text


def test_bars_spans_and_latencies_are_never_rounded_to_what_they_are_not() -> None:
    assert [bar(share)[0] for share in (0.0, 0.001, float("nan"))] == ["░", "▏", "░"]
    assert bar(0.999)[-1] == "▉"
    assert bar(2.0) == "█" * 16
    assert [span(s) for s in (-1, 45, 750, 3605, 18_120, 273_600)] == ["0s", "45s", "12m30s", "1h", "5h2m", "3d4h"]
    assert [about(s) for s in (1, 21, 80, 250, 7000, 200_000)] == [
        "about 5 s",
        "about 20 s",
        "about 80 s",
        "about 4 min",
        "about 2 h",
        "about 2 days",
    ]
    assert [latency(ms) for ms in (None, 0.44, 23.4, 1234, float("inf"))] == ["-", "0.44 ms", "23 ms", "1.2 s", "hung"]


@pytest.mark.parametrize(("phase", "code"), ENDS.items())
def test_a_watch_ends_with_the_rollout_and_its_exit_code_says_how(
    phase: Phase, code: int, command: Command, here: RolloutPlatform
) -> None:
    here.scenes += [here.scenes[0], ended(phase)]

    found, printed, _ = command("rollout", "status", "coins", "-w")

    assert found == code
    assert printed.count("coins: ") == 2, "a piped watch prints each move once"
    assert phase.label in printed
    assert "\x1b" not in printed


def test_a_watch_right_after_apply_waits_for_the_rollout_that_is_to_come(
    command: Command, here: RolloutPlatform
) -> None:
    unseen = records.coins(None, generation=2)
    unseen_again = ended(Phase.SUCCEEDED)
    unseen_again["metadata"]["generation"] = 2
    here.scenes = [unseen, unseen_again, ended(Phase.ROLLED_BACK)]

    code, printed, _ = command("rollout", "status", "coins", "-w")

    assert code == 1
    assert "no rollout yet" in printed
    assert "the operator has not processed the newest spec yet" in printed


def test_a_model_without_a_rollout_says_why(command: Command, here: RolloutPlatform) -> None:
    here.scenes = [records.coins(None)]
    _, _, waiting = command("rollout", "status", "coins")
    here.scenes = [records.coins(None, rollout=None)]
    code, _, without = command("rollout", "status", "coins", "-w")

    assert "has had no rollout yet; the next change of its spec starts one" in waiting
    assert code == 1
    assert "without `spec.rollout`" in without


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_a_document_without_what_json_has_not(
    form: str, read: Any, command: Command, here: RolloutPlatform
) -> None:
    odd = Verdict("latency", Outcome.UNDECIDED, "NoData", "", 0.0, {"bound": float("inf"), "seen": 3.0})
    found = replace(records.record(time.time()), verdicts=(odd,))
    here.records[found.name] = records.manifest(found)

    code, printed, _ = command("rollout", "status", "coins", "-o", form)

    said = read(printed)
    assert code == 0
    assert (said["phase"], said["step"], said["steps"], said["weight"], said["ended"]) == (
        "Progressing",
        2,
        3,
        25,
        False,
    )
    assert [side["role"] for side in said["revisions"]] == ["stable", "candidate"]
    assert said["revisions"][1]["requests"] == 1680
    assert said["gates"][0]["numbers"] == {"seen": 3.0}
    assert said["decisions"][-1]["reason"] == "StepDone"


def test_the_documentation_shows_what_the_command_draws(tmp_path: Path) -> None:
    records.main(tmp_path / "now.svg")

    shown, now = (unescape((path).read_text()) for path in (DOCUMENTED, tmp_path / "now.svg"))

    assert shown == now, f"draw it anew: PYTHONPATH=tests python -m fakes.rollout_records {DOCUMENTED.name}"


def test_get_shows_the_phase_and_whether_the_slo_is_met() -> None:
    model = records.coins(records.standing())
    model["status"]["slo"] = "Breached"
    file = io.StringIO()

    Console(file=file, width=200).print(models_table([model]))

    names, values = (line.split() for line in file.getvalue().splitlines())
    shown = dict(zip(names, values, strict=False))
    assert (shown["CANDIDATE"], shown["PHASE"], shown["WEIGHT"], shown["SLO"]) == (
        records.CANDIDATE,
        "Progressing",
        "25",
        "Breached",
    )


def test_a_terminal_is_redrawn_in_place_until_the_rollout_ends(here: RolloutPlatform) -> None:
    here.scenes += [here.scenes[0], ended(Phase.SUCCEEDED)]
    file = io.StringIO()
    console = Console(file=file, width=170, force_terminal=True, no_color=False)

    last = follow(console, here, "coins", wide=False)  # type: ignore[arg-type]

    assert last.standing.phase is Phase.SUCCEEDED
    assert "\x1b[1A" in file.getvalue(), "lines are drawn over"
    assert "ended" in file.getvalue()
