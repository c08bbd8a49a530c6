"""Which tests a command runs, and what it says of the others: whole runs of pytest on files of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MARKS = """
[pytest]
addopts = -p no:cacheprovider --strict-markers
markers =
    platform: real servers
    core: of those the core
    cluster: Kubernetes
    needs: tools
"""
TESTS = """
import pytest

def test_that_needs_nothing(): pass

@pytest.mark.needs("torchvision")
def test_beside_torchvision(): pass

@pytest.mark.platform
def test_on_servers(): pass

@pytest.mark.platform
@pytest.mark.core
def test_at_the_core(): pass

@pytest.mark.cluster
@pytest.mark.parametrize("number", range(4))
def test_on_kubernetes(number): pass
"""
PROPERTY = """
from pathlib import Path
from hypothesis import given, strategies as st

@given(st.integers())
def test_any_number(number):
    with Path("numbers").open("a") as file:
        print(number, file=file)
"""
PLUGINS = ("-p", "opened", "-p", "selection", "-p", "_hypothesis_pytestplugin", "-p", "xdist.plugin")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run pytest with this project's selection on a file of tests; the only tool is missing."""
    (tmp_path / "pytest.ini").write_text(MARKS)
    (tmp_path / "tools.py").write_text(
        "from types import SimpleNamespace\n"
        "MISSING = SimpleNamespace(title='Debian', lack='needs Debian (make it)', is_there=lambda: False)\n"
        "TOOLS = {'torchvision': MISSING}\n"
    )

    def run(text: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "test_file.py").write_text(text)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "SEGSERVE"))}
        return subprocess.run(
            [sys.executable, "-m", "pytest", *PLUGINS, *arguments],
            cwd=tmp_path,
            env={
                **inherited,
                "PYTHONPATH": f"{tmp_path}:{ROOT / 'tests'}",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("spread", [(), ("-n2", "--dist=loadfile")], ids=["one process", "two processes"])
def test_what_is_left_to_another_command_is_counted_by_what_it_needs(run: Run, spread: tuple[str, ...]) -> None:
    chosen = "not needs and not cluster and (core or not platform)"

    done = run(TESTS, "-m", chosen, "--rest-by", "make all", *spread)

    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert "NOT RUN HERE" in done.stdout
    assert "4 left to `make all`: they need Kubernetes" in done.stdout
    assert "1 left to `make all`: they need Debian" in done.stdout
    assert "1 left to `make all`: they need the real Triton and Envoy" in done.stdout


def test_a_tool_that_is_missing_is_said_with_what_brings_it_and_several_runs_say_it_in_one_file(
    run: Run, tmp_path: Path
) -> None:
    for _ in range(2):
        done = run(TESTS, "-m", "needs", "--not-run", "not-run.txt")

        assert done.returncode == 0
        assert "1 skipped: needs Debian (make it)" in done.stdout
    assert (tmp_path / "not-run.txt").read_text() == "1 skipped: needs Debian (make it)\n" * 2


def test_a_run_that_is_about_a_tool_skips_all_tests_without_it(run: Run) -> None:
    done = run(TESTS, "-m", "core", "--needs", "torchvision")

    assert "passed" not in done.stdout
    assert "1 skipped: needs Debian (make it)" in done.stdout


def test_where_everything_must_run_a_skipped_test_is_a_failure(run: Run) -> None:
    done = run(TESTS, "-m", "needs", SEGSERVE_TEST_ALL="1")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "a skipped test is a failure" in done.stdout


def test_a_property_test_tries_the_same_examples_each_time_and_others_when_it_is_to_explore(
    run: Run, tmp_path: Path
) -> None:
    tried = []
    for profile in ("repeatable", "repeatable", "fuzz", "fuzz"):
        run(PROPERTY, f"--hypothesis-profile={profile}")
        tried.append((tmp_path / "numbers").read_text())
        (tmp_path / "numbers").unlink()

    assert tried[0] == tried[1]
    assert tried[2] != tried[3]


@pytest.mark.parametrize("spread", [(), ("-n2", "--dist=loadfile")], ids=["one process", "two processes"])
def test_a_run_names_the_files_of_the_project_that_its_tests_open(
    run: Run, tmp_path: Path, spread: tuple[str, ...]
) -> None:
    for name in ("read.txt", "given.txt", "left.txt", "module.py"):
        (tmp_path / name).write_text("")
    tests = """
import subprocess
from pathlib import Path

def test_that_opens():
    import module
    Path(__file__).with_name("read.txt").read_text()
    subprocess.run(["true", Path(__file__).with_name("given.txt")], check=True)
"""

    assert run(tests, "--opened", "opened", *spread).returncode == 0

    opened = (tmp_path / "opened").read_text().splitlines()
    assert {"read.txt", "given.txt", "module.py"} <= set(opened)
    assert "left.txt" not in opened
