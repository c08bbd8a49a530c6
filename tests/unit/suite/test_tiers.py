"""Every test belongs to a tier, and a tier's record says when it is older than what it covers."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

import tiers
from second_look import Results
from selection import MUST_RUN_ALL
from tiers import TIERS, digest, record_of, standing, summary
from tools import TOOLS

CORE = {"core", "platform"}
MARKS = ("same", "thorough", "needs", "cluster", "neighbours", "core", "platform")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in place of this one."""
    for path in ("covered/file.py", "other/file.py", "tests/file.py", ".gitignore"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("out/\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(tiers, "ROOT", tmp_path)
    monkeypatch.setattr(tiers, "OUT", tmp_path / "out")
    monkeypatch.setattr(tiers, "RECORDS", tmp_path / "tests/records")
    return tmp_path


@pytest.mark.same
def test_every_test_belongs_to_a_tier() -> None:
    whole = [
        Expression.compile(tier.marks)
        for name, tier in TIERS.items()
        if (not tier.paths or name == "same") and not tier.busy and tier.environment == ".venv"
    ]

    def is_run(marks: set[str]) -> bool:
        return any(tier.evaluate(lambda name, **_: name in marks) for tier in whole)

    combinations = [set(marks) for number in range(5) for marks in itertools.combinations(MARKS, number)]
    # What is of the core is of the platform, and what compares needs nothing.
    used = [marks for marks in combinations if marks.isdisjoint({"core", "same"}) or marks in ({"same"}, CORE)]
    used = [marks for marks in used if "neighbours" not in marks or "cluster" in marks]

    assert [marks for marks in used if not is_run(marks)] == []


@pytest.mark.same
def test_what_a_tier_names_is_there() -> None:
    named = [path for tier in TIERS.values() for path in (*tier.covers, *tier.paths)]

    assert [path for path in named if not list(tiers.ROOT.glob(path))] == []


@pytest.mark.same
def test_the_page_of_the_records_is_what_they_say() -> None:
    assert (tiers.RECORDS / "README.md").read_text() == tiers.page()


def test_a_digest_is_of_what_is_covered(checkout: Path) -> None:
    before = digest(["covered"])

    (checkout / "other/file.py").write_text("changed")
    assert digest(["covered"]) == before
    (checkout / "covered/new.py").write_text("new")
    assert digest(["covered"]) != before


def test_a_record_says_what_it_is_worth(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TIERS, "platform", tiers.Tier("servers", ("covered",), "platform"))
    assert standing("platform").startswith("no record")

    tiers.write_record("platform", Results({"tests/a/test_b.py::test_c": "passed"}), 60.0)
    assert standing("platform").startswith("green, current; 1 passed, 0 not run in 1.0 minutes")
    (checkout / "covered/file.py").write_text("changed")
    assert standing("platform").startswith("green, older than what it covers")


def test_a_record_is_also_of_what_its_tests_opened(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TIERS, "platform", tiers.Tier("servers", ("covered",), "platform"))
    tiers.OUT.mkdir()
    (tiers.OUT / "opened.txt").write_text("other/file.py\ncovered/file.py\n.git/HEAD\ntests/records/platform.json\n")
    record = tiers.write_record("platform", Results({"tests/a/test_b.py::test_c": "passed"}), 60.0)
    assert record["alsoOpened"] == ["other/file.py"]
    assert tiers.is_current("platform")

    (checkout / "other/file.py").write_text("changed")
    assert not tiers.is_current("platform")


def test_a_run_is_red_if_a_file_that_it_is_of_changed_meanwhile(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: object) -> Results:
        (checkout / "covered/file.py").write_text("changed")
        return Results({"tests/a/test_b.py::test_c": "passed"})

    monkeypatch.setitem(TIERS, "platform", tiers.Tier("servers", ("covered",), "platform"))
    monkeypatch.setattr(tiers, "run", run)

    assert tiers.run_tier("platform", 0.0) == 1
    assert json.loads((tiers.RECORDS / "platform.json").read_text())["broken"] == [
        "changed while the tests ran: covered/file.py"
    ]


def test_a_run_is_red_if_it_skipped_a_test_that_needs_no_other_machine(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MUST_RUN_ALL, raising=False)
    skipped = {"tests/a.py::test_b": TOOLS["peers"].lack, "tests/a.py::test_c": TOOLS["gpu"].lack}
    monkeypatch.setattr(tiers, "run", lambda _: Results(dict.fromkeys(skipped, "skipped"), skipped=skipped))
    monkeypatch.setattr(tiers, "TIERS", {name: tiers.Tier("", ("covered",), name) for name in ("platform", "edits")})

    assert tiers.run_tier("platform", 0.0) == 1
    assert json.loads((tiers.RECORDS / "platform.json").read_text())["broken"] == [
        "tests were skipped: needs the environment of peers (make peers)"
    ]


def test_all_tiers_are_green_at_a_commit_if_each_has_a_green_record_of_its_files(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "TIERS", {name: tiers.Tier(name, ("covered",), name) for name in ("platform", "edits")})
    passed = Results({"tests/a/test_b.py::test_c": "passed"})
    tiers.write_record("platform", passed, 60.0)
    assert re.fullmatch(r"not all green at [0-9a-f]{9}: edits", tiers.whole_standing())

    tiers.write_record("edits", passed, 60.0)
    assert re.fullmatch(r"all green at [0-9a-f]{9}", tiers.whole_standing())
    (checkout / "other/file.py").write_text("changed")
    assert re.fullmatch(r"all green at [0-9a-f]{9}, with changes that are not committed", tiers.whole_standing())
    (checkout / "covered/file.py").write_text("changed")
    assert tiers.whole_standing().endswith(": platform, edits")


@pytest.mark.parametrize(("is_set", "folders"), [(True, ["out", "tests/records"]), (False, ["out"])])
def test_a_quick_tier_has_a_record_if_nothing_may_be_skipped(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, is_set: bool, folders: list[str]
) -> None:
    monkeypatch.setenv(MUST_RUN_ALL, "1" if is_set else "")

    tiers.write_record("same", Results({"tests/a/test_b.py::test_c": "passed"}), 60.0)

    assert sorted(str(path.parent.relative_to(checkout)) for path in checkout.rglob("same.json")) == folders


def test_a_record_has_no_folder_of_this_machine(checkout: Path) -> None:
    run = f"{tempfile.gettempdir()}/pytest-of-somebody/pytest-7"
    said = f"{checkout}/a.py:1: assert PosixPath('{run}/test_b0/mask.png') == '{Path.home()}/mask.png'"
    results = Results({"tests/a.py::test_b": "failed"}, failures={"tests/a.py::test_b": said})

    written = tiers.write_record("platform", results, 60.0)

    kept = "a.py:1: assert PosixPath('test_b0/mask.png') == '~/mask.png'"
    assert written["failed"] == {"tests/a.py::test_b": kept}


@pytest.mark.parametrize("name", [name for name, tier in TIERS.items() if tier.is_long])
def test_the_record_of_a_long_tier_can_be_committed(checkout: Path, name: str) -> None:
    tiers.write_record(name, Results({"tests/a/test_b.py::test_c": "passed"}), 60.0)

    untracked = subprocess.run(
        ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert untracked.stdout == "?? tests/records/\n"


@pytest.mark.parametrize(
    ("failure", "is_said"),
    [
        pytest.param("in call: assert 'a' == 'b'", True, id="a difference"),
        pytest.param("in call: Failed: Timeout (>300.0s) from pytest-timeout.", False, id="a timeout"),
    ],
)
def test_only_a_difference_is_said_to_need_what_is_generated_anew(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: str, is_said: bool
) -> None:
    results = Results({"tests/unit/test_a.py::test_a": "failed"}, {}, {"tests/unit/test_a.py::test_a": failure})
    monkeypatch.setattr(tiers, "run", lambda _: results)
    monkeypatch.setattr(tiers, "look_again", lambda *_: None)

    assert tiers.run_tier("same", 0.0) == 1

    assert ("`make write`" in capsys.readouterr().out) is is_said


def test_a_run_of_all_quick_tests_names_the_long_tiers_that_are_old(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tiers, "run", lambda _: Results({"tests/unit/test_a.py::test_a": "passed"}))
    tiers.write_record("edits", Results({"tests/a/test_b.py::test_c": "passed"}), 60.0)

    assert tiers.run_tier("test", 0.0) == 0

    _, _, old = capsys.readouterr().out.partition("==== LONG TIERS OLDER THAN WHAT THEY COVER ====")
    assert "platform     no record" in old
    assert "edits" not in old


def test_a_summary_names_what_failed_what_was_flaky_and_where_the_minutes_went(checkout: Path) -> None:
    results = Results(
        {"tests/unit/a/test_a.py::test_a": "passed", "tests/e2e/test_b.py::test_b": "failed"},
        {"tests/unit/a/test_a.py::test_a": 60.0, "tests/e2e/test_b.py::test_b": 30.0},
        {"tests/e2e/test_b.py::test_b": "in call: assert 1 == 2"},
        flaky={"tests/unit/a/test_a.py::test_a": "in call: too slow"},
    )

    text = summary(record_of("test", results, 60.0, load=0.0))

    assert "FLAKY" in text
    assert "in call: too slow" in text
    assert "failed: tests/e2e/test_b.py::test_b" in text
    assert "1.00 min      1 tests  tests/unit/a" in text
    assert "0.50 min      1 tests  tests/e2e" in text
    assert text.endswith("1.0 minutes; of those that passed 1 flaky; 0 quarantined\n1 passed, 1 failed")
