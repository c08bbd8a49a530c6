"""Every test belongs to a tier, and a tier's record says when it is older than what it covers."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

import tiers
from second_look import Results
from tiers import TIERS, digest, record_of, standing, summary

CORE = {"core", "platform"}
MARKS = ("same", "thorough", "needs", "cluster", "neighbours", "core", "platform")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in place of this one."""
    for path in ("covered/file.py", "other/file.py", ".gitignore"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("out/\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(tiers, "ROOT", tmp_path)
    monkeypatch.setattr(tiers, "OUT", tmp_path / "out")
    monkeypatch.setattr(tiers, "RECORDS", tmp_path / "records")
    return tmp_path


@pytest.mark.same
def test_every_test_belongs_to_a_tier() -> None:
    whole = [Expression.compile(tier.marks) for name, tier in TIERS.items() if not tier.paths or name == "same"]

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


def test_a_digest_is_of_what_is_covered(checkout: Path) -> None:
    before = digest(["covered"])

    (checkout / "other/file.py").write_text("changed")
    assert digest(["covered"]) == before
    (checkout / "covered/new.py").write_text("new")
    assert digest(["covered"]) != before


def test_a_record_says_what_it_is_worth(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TIERS, "platform", tiers.Tier("servers", ("covered",), "platform"))  # type: ignore[arg-type]
    assert standing("platform").startswith("no record")

    tiers.write_record("platform", Results({"tests/a/test_b.py::test_c": "passed"}), 60.0)
    assert standing("platform").startswith("green, current; 1 passed, 0 not run in 1.0 minutes")
    (checkout / "covered/file.py").write_text("changed")
    assert standing("platform").startswith("green, older than what it covers")


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
    assert untracked.stdout == "?? records/\n"


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
    assert "platform   no record" in old
    assert "edits" not in old


def test_a_summary_names_what_failed_what_was_flaky_and_where_the_minutes_went(checkout: Path) -> None:
    results = Results(
        {"tests/unit/a/test_a.py::test_a": "passed", "tests/e2e/test_b.py::test_b": "failed"},
        {"tests/unit/a/test_a.py::test_a": 60.0, "tests/e2e/test_b.py::test_b": 30.0},
        {"tests/e2e/test_b.py::test_b": "in call: assert 1 == 2"},
        flaky={"tests/unit/a/test_a.py::test_a": "in call: too slow"},
    )

    text = summary(record_of("test", results, 60.0))

    assert "FLAKY" in text
    assert "in call: too slow" in text
    assert "failed: tests/e2e/test_b.py::test_b" in text
    assert "1.00 min      1 tests  tests/unit/a" in text
    assert "0.50 min      1 tests  tests/e2e" in text
    assert text.endswith("1.0 minutes; of those that passed 1 flaky; 0 quarantined\n1 passed, 1 failed")
