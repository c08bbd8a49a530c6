"""`rollout status`: the tree, what each row says, how a watch ends, and what programs get."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from fakes import rollout_records as records
from segserve.cli.models_view import models_table
from segserve.cli.rollout import commands
from segserve.cli.rollout.power import Outlook
from segserve.cli.rollout.render import RolloutTree, bar, latency, span
from segserve.cli.rollout.status import follow
from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.power import DetectedRegression as Power
from segserve_operator.core.rollout.power import Preview
from segserve_operator.core.rollout.record import Row

from .conftest import Command
from .rollout_platform import RolloutPlatform

DOCUMENTED = Path(__file__).parents[4] / "docs/images/rollout-status.svg"
PREVIEW = Preview(
    40.0,
    10.0,
    (
        Power("errors", "+1 pp", 0.1, float("inf")),
        Power("errors", "+5 pp", 1.0, 75.0),
        Power("latency", "x3", 0.2, float("inf")),
    ),
    90.0,
)
ENDS = {Phase.SUCCEEDED: 0, Phase.ROLLED_BACK: 1, Phase.CANCELLED: 1}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> RolloutPlatform:
    """A rollout that began 270 s ago."""
    found = records.record(time.time() - 270)
    fake = RolloutPlatform([records.coins(records.standing(found))], {found.name: records.manifest(found)})
    monkeypatch.setattr(commands, "selected_platform", lambda _: fake)
    monkeypatch.setattr("segserve.cli.rollout.status.REFRESH_S", 0.0)
    monkeypatch.setattr("segserve.cli.rollout.power.preview", lambda policy, slo, rate, minutes: PREVIEW)
    return fake


def drawn(seen: Any, *, encoding: str = "utf-8", **how: Any) -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=170, force_terminal=False, color_system=None).print(RolloutTree(seen, **how))
    file.seek(0)
    return [line.rstrip() for line in file.read().splitlines()]


def words(line: str) -> str:
    return " ".join(line.split())


def ended(phase: Phase, **changes: Any) -> Any:
    return records.coins(
        records.standing(phase=phase, step=2, weight=100 if phase is Phase.SUCCEEDED else 0, **changes)
    )


def test_both_revisions_are_compared_over_the_time_in_which_both_had_requests() -> None:
    lines = drawn(records.seen())

    assert lines[0].split() == ["coins", "◐", "Progressing", "step", "2", "of", "3", records.NAME]
    assert words(lines[1]).endswith("● stable 75 % 7,920 requests 0.063 % errors p50 32 ms p95 68 ms")
    assert words(lines[2]).endswith("◐ candidate 25 % 1,680 requests 0.06 % errors p50 35 ms p95 74 ms")


def test_each_gate_has_its_evidence_as_a_bar_its_verdict_and_why() -> None:
    lines = drawn(records.seen())

    assert "errorRate      ● Pass         ▎░░░░░░░░░░░░░░░   2 %  NoWorse  0.06 % of 1,680 requests failed" in lines[4]
    assert "latency        ◐ Undecided    ████▉░░░░░░░░░░░  31 %  NoProof  p50 35 ms and p95 74 ms" in lines[5]


def test_it_says_what_it_waits_for_how_long_it_has_and_what_came_last() -> None:
    said = " | ".join(words(line) for line in drawn(records.seen(), preview="+5 pp in 11 s"))

    assert "waits for ◐ HarmNotBounded at the next weight it could still do more harm" in said
    assert "time left ○ 5h55m to the deadline, then: Hold" in said
    assert "power ○ +5 pp in 11 s" in said
    assert "2m17s ago ◐ Progressing 25 % segserve StepDone the evidence allows the next weight" in said


def test_the_deadline_is_told_from_the_last_resume_and_not_while_a_person_holds_it() -> None:
    resumed = records.seen(standing=records.standing(resumed_s=records.STARTED_S + 133))
    paused = records.seen(standing=records.standing(paused=True))

    assert "time left ○ 5h57m to the deadline, then: Hold" in " | ".join(map(words, drawn(resumed)))
    assert "time left ○ paused; 6h to the deadline after resume" in " | ".join(map(words, drawn(paused)))


def test_wide_adds_the_numbers_and_all_decisions() -> None:
    many = records.record().decisions * 3
    seen = records.seen(record=records.record(decisions=many))

    brief, wide = "\n".join(drawn(seen)), "\n".join(drawn(seen, wide=True))

    assert "(iou 0.9814, meanChange 0.0012)" in wide
    assert "meanChange" not in brief
    assert (brief.count(" ago "), wide.count(" ago ")) == (4, 12)
    assert "8 earlier ones; -o wide shows all" in brief


@pytest.mark.parametrize("phase", [Phase.BAKING, Phase.SUCCEEDED])
def test_a_promoted_revision_is_the_stable_one(phase: Phase) -> None:
    lines = drawn(records.seen(standing=records.standing(phase=phase, weight=100, reason="", message="")))

    assert f"{records.STABLE}  ○ previous" in lines[1]
    assert f"{records.CANDIDATE}  ● stable" in lines[2]
    assert ("of 10m of bake time" in "".join(lines)) == (phase is Phase.BAKING)


def test_a_quarantine_a_skipped_gate_and_a_pause_are_shown() -> None:
    at = records.standing(phase=Phase.QUARANTINED, weight=0, quarantines=2, skipped=("latency",), paused=True)

    said = "\n".join(drawn(records.seen(standing=at)))

    assert "✗ Quarantined" in said
    assert "2 of 3" in said
    assert "latency        ○ skipped" in said
    assert "paused" in said
    assert "because" in said


def test_a_rollout_whose_record_was_not_written_yet_is_shown_by_its_status() -> None:
    lines = drawn(records.seen(record=None))

    assert len(lines) == 4
    assert "0 requests" in lines[2]


def test_hung_requests_have_no_latency_and_a_breach_of_the_slo_is_red() -> None:
    rows = (Row(1.0, 1.0, 50, (10, 10), (0, 5), (((30, 10),), ((len(EDGES_MS), 10),))),)
    seen = records.seen(record=records.record(rows=rows))
    file = io.StringIO()

    Console(file=file, width=170, color_system="standard", force_terminal=True, no_color=False).print(RolloutTree(seen))

    assert "\x1b[31m     50 % errors" in file.getvalue()
    assert "hung" in file.getvalue()


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text = "\n".join(drawn(records.seen(), encoding="ascii"))

    assert text.isascii()
    assert "|   |-- latency        ~ Undecided    #####...........  31 %" in text


def test_bars_spans_and_latencies_are_never_rounded_to_what_they_are_not() -> None:
    assert [bar(share)[0] for share in (0.0, 0.001, float("nan"))] == ["░", "▏", "░"]
    assert bar(0.999)[-1] == "▉"
    assert bar(2.0) == "█" * 16
    assert [span(s) for s in (-1, 45, 750, 3605, 18_120, 273_600)] == ["0s", "45s", "12m30s", "1h", "5h2m", "3d4h"]
    assert [latency(ms) for ms in (None, 0.44, 23.4, 1234, float("inf"))] == ["-", "0.44 ms", "23 ms", "1.2 s", "hung"]


def test_status_prints_the_tree_without_escape_codes_where_nobody_looks(
    command: Command, here: RolloutPlatform
) -> None:
    code, printed, _ = command("rollout", "status", "coins")

    assert code == 0
    assert "step 2 of 3" in printed
    assert "\x1b" not in printed


def test_wide_says_what_the_evidence_can_show_at_the_requests_that_come(
    command: Command, here: RolloutPlatform
) -> None:
    _, brief, _ = command("rollout", "status", "coins")
    _, wide, _ = command("rollout", "status", "coins", "-o", "wide")

    assert "10 min at 40 requests/s show errors from +5 pp on (in 1m15s), no latency up to x3" in wide
    assert "10 min" not in brief


def test_a_live_view_does_not_wait_for_what_is_worked_out_and_keeps_what_was_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready, found, outlook = threading.Event(), records.record(), Outlook()

    def preview(policy: Any, slo: Any, rate: float, minutes: float) -> Preview:
        ready.wait()
        return PREVIEW

    monkeypatch.setattr("segserve.cli.rollout.power.preview", preview)

    assert outlook.line(found) == ""
    ready.set()
    known = outlook.line(found, wait=True) or wait_for(lambda: outlook.line(found))
    ready.clear()
    busier = replace(found, progress=replace(found.progress, rate=np.array(900.0)))

    assert "errors from +5 pp on" in known
    assert outlook.line(busier) == known
    ready.set()


def wait_for(said: Callable[[], str]) -> str:
    while not said():
        time.sleep(0.001)
    return said()


def test_nothing_is_worked_out_where_no_requests_come() -> None:
    quiet = replace(records.record(), progress=replace(records.record().progress, rate=np.array(0.0)))

    assert Outlook().line(quiet, wait=True) == ""


@pytest.mark.parametrize(("phase", "code"), ENDS.items())
def test_a_watch_ends_with_the_rollout_and_its_exit_code_says_how(
    phase: Phase, code: int, command: Command, here: RolloutPlatform
) -> None:
    here.scenes += [here.scenes[0], ended(phase)]

    found, printed, _ = command("rollout", "status", "coins", "-w")

    assert found == code
    assert printed.count("coins ") == 2, "a piped watch prints each move once"
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


def test_a_watch_has_no_machine_readable_form(command: Command, here: RolloutPlatform) -> None:
    code, _, complaint = command("rollout", "status", "coins", "-w", "-o", "json")

    assert code == 2
    assert "-w supports only -o table and -o wide" in complaint


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
