"""The documentation's scripts and examples, checked strictly against the installed package as a reader's are."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from fakes.docs import PAGES, ROOT, blocks

SCRIPTS = sorted((ROOT / "docs/how-to").glob("*.py"))
PROGRAMS = [page for page in PAGES if any(not block.reason for block in blocks(page, "python"))]
PACKAGES = (
    "client/src/segserve",
    "model_repo_builder/src/segserve_builder",
    "model_repo_builder/src/segserve_common",
    "operator/src/segserve_operator",
)


def module(path: Path) -> str:
    """Return the name of the file that a script, or the program of a page, is checked as."""
    return re.sub(r"\W", "_", str(path.relative_to(ROOT).with_suffix(""))) + ".py"


def program(page: Path) -> str:
    """Return the blocks of a page that run, each on its lines of the page."""
    text = ""
    for block in blocks(page, "python"):
        if not block.reason:
            text += "\n" * (block.line - 1 - text.count("\n")) + block.text
    return text


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The errors of mypy for all scripts and pages, in an environment that has the packages as a wheel places them."""
    folder = tmp_path_factory.mktemp("examples")
    venv.create(folder / "venv", symlinks=True)
    (own,) = (folder / "venv").glob("lib/python*/site-packages")
    for source in PACKAGES:
        (own / Path(source).name).symlink_to(ROOT / source)
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))
    texts = {module(path): path.read_text() for path in SCRIPTS} | {module(page): program(page) for page in PROGRAMS}
    for name, text in texts.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--disable-error-code=import-untyped"]
    command += [
        "--python-executable",
        str(folder / "venv/bin/python"),
        "--cache-dir",
        str(ROOT / ".mypy_cache/examples"),
    ]
    done = subprocess.run([*command, *texts], cwd=folder, capture_output=True, text=True, check=False)
    assert f"{len(texts)} source files" in done.stdout, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


@pytest.mark.parametrize("path", [*SCRIPTS, *PROGRAMS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_script_and_every_page_passes_a_strict_type_checker(path: Path, errors: list[str]) -> None:
    assert [line for line in errors if line.startswith(f"{module(path)}:")] == []
