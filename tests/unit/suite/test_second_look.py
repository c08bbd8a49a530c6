"""What failed is looked at again: whole runs of pytest on files of the test's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

from second_look import MOST_TESTS, Results, look_again, run
from verdicts import quarantined

ROOT = Path(__file__).parents[3]
MOST_QUARANTINED = 10
LONGEST = timedelta(days=14)
PASSES = "def test_passes(): pass\n"
FAILS = "def test_fails(): assert 1 == 2\n"
# Fails in the first process that runs it, and in no other one.
FAILS_ONCE = """
from pathlib import Path
def test_fails_once():
    seen = Path(__file__).with_name("seen")
    if not seen.exists():
        seen.touch()
        raise AssertionError("too slow")
"""
Look = Callable[..., Results]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Run files of tests as a tier is run, the second look included."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)
    # Each run is a process, for which the other plug-ins take longest.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")

    def look(*options: str, **files: str) -> Results:
        for name, text in files.items():
            (tmp_path / f"test_{name}.py").write_text(text)
        python = [sys.executable, "-m", "pytest", "-p", "pytest_reportlog.plugin", "-p", "xdist", "-p", "verdicts"]
        results = run([*python, *options])
        look_again(results, python)
        return results

    return look


def test_what_passes_alone_is_flaky_with_the_text_of_its_first_failure(look: Look) -> None:
    results = look("-n2", "--dist=loadfile", once=FAILS_ONCE, other=PASSES)

    assert results.having("failed") == []
    assert set(results.having("passed")) == {"test_once.py::test_fails_once", "test_other.py::test_passes"}
    (text,) = results.flaky.values()
    assert "too slow" in text
    assert "load " in text


def test_what_fails_alone_is_a_failure(look: Look) -> None:
    results = look(always=FAILS, other=PASSES)

    assert results.having("failed") == ["test_always.py::test_fails"]
    assert results.flaky == {}
    assert "1 == 2" in results.failures["test_always.py::test_fails"]


def test_a_run_that_somebody_ended_is_broken_whatever_had_passed(look: Look) -> None:
    # As SIGINT ends a run; a shell starts what runs in its background with SIGINT ignored.
    ended = "def test_ends(): raise KeyboardInterrupt\n"

    results = look(always=FAILS, ended=ended, other=PASSES)

    assert results.broken == ["pytest was interrupted"]
    assert results.flaky == {}


def test_more_failures_than_a_few_are_not_looked_at_again(look: Look) -> None:
    results = look(
        **{f"once_{number}": FAILS_ONCE.replace("seen", f"seen{number}") for number in range(MOST_TESTS + 1)}
    )

    assert len(results.having("failed")) == MOST_TESTS + 1


def test_a_file_that_cannot_be_collected_is_no_plain_failure(look: Look) -> None:
    results = look(broken="import nothing_of_this_name\n", once=FAILS_ONCE)

    assert "test_broken.py cannot be collected" in results.broken
    assert results.flaky == {}


def test_a_lost_process_is_no_plain_failure(look: Look) -> None:
    results = look("-n2", "--dist=loadfile", lost="import os\ndef test_ends(): os._exit(1)\n", once=FAILS_ONCE)

    assert any("crashed" in text for text in results.broken)
    assert results.flaky == {}


def test_a_quarantined_test_runs_and_never_blocks(look: Look, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/quarantine.txt").write_text("test_always.py::test_fails | 2026-11-25 | not known\n")

    results = look(always=FAILS, other=PASSES)

    assert results.outcomes == {"test_always.py::test_fails": "xfailed", "test_other.py::test_passes": "passed"}
    assert results.failures == {}


@pytest.mark.same
def test_few_tests_are_in_quarantine_and_for_a_short_time() -> None:
    listed = quarantined(ROOT)

    assert len(listed) <= MOST_QUARANTINED
    assert [each for each in listed if date.today() - each.since > LONGEST] == []


@pytest.mark.parametrize("line", ["tests/test_a.py::test_b", "tests/test_a.py::test_b | yesterday | slow"])
def test_a_line_of_the_quarantine_that_cannot_be_read_is_said(line: str, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/quarantine.txt").write_text(line)

    with pytest.raises(ValueError, match="is not `id"):
        quarantined(tmp_path)
