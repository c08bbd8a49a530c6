"""A release is refused, before anything is built, by whatever does not say its version."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
VERSION: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CHART: Final = "charts/segserve/Chart.yaml"
FILES: Final = ("images/release.sh", "pyproject.toml", CHART, "CHANGELOG.md")
HEADING: Final = f"\n## [{VERSION}] - 2031-02-03\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose changelog has the section of a release; no program in it can build anything."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = tmp_path / "CHANGELOG.md"
    text = changelog.read_text()
    changelog.write_text(text if f"\n## [{VERSION}] - " in text else text.replace("\n## [Unreleased]\n", HEADING))
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
    subprocess.run(["git", "-C", tmp_path, *identity, "commit", "--quiet", "--message", "A release"], check=True)
    return tmp_path


def refusal(checkout: Path, *arguments: str) -> str:
    """Return why there is no release, in the words of the script."""
    command = [checkout / "images/release.sh", *arguments]
    environment = {**os.environ, "UV": "/bin/false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr.strip()


def test_a_checkout_that_is_in_order_is_not_refused(checkout: Path) -> None:
    assert refusal(checkout, VERSION) == ""  # the program that is to build fails, and says nothing


def test_a_release_needs_a_version(checkout: Path) -> None:
    expected = "no release: VERSION is missing; `make release VERSION=0.1.0` names it"

    assert refusal(checkout) == expected
    assert refusal(checkout, "") == expected


@pytest.mark.parametrize(
    ("name", "old", "seen"),
    [
        ("pyproject.toml", f'\nversion = "{VERSION}"', "the version in pyproject.toml"),
        (CHART, f"\nversion: {VERSION}", f"the version in {CHART}"),
        (CHART, f"\nappVersion: {VERSION}", f"the appVersion in {CHART}"),
        (CHART, f"segserve-operator:{VERSION}", f"the tag of segserve-operator in {CHART}"),
        (CHART, f"segserve-server:{VERSION}", f"the tag of segserve-server in {CHART}"),
    ],
)
def test_each_place_that_has_another_version_is_named(checkout: Path, name: str, old: str, seen: str) -> None:
    text = (checkout / name).read_text()
    assert old in text
    (checkout / name).write_text(text.replace(old, old.replace(VERSION, "7.8.9")))

    refused = refusal(checkout, VERSION)

    assert refused == f"no release of {VERSION}: {seen} is 7.8.9; set it to {VERSION}, or name another VERSION"


@pytest.mark.parametrize("heading", ["\n## [Unreleased]\n", f"\n## [{VERSION}]\n", f"\n## [{VERSION}] - soon\n"])
def test_a_changelog_without_a_dated_section_of_the_version_is_named(checkout: Path, heading: str) -> None:
    changelog = checkout / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace(HEADING, heading))

    assert f"CHANGELOG.md has no line '## [{VERSION}] - YYYY-MM-DD'" in refusal(checkout, VERSION)


def test_changes_without_a_commit_are_named(checkout: Path) -> None:
    (checkout / "notes.txt").touch()

    assert "the checkout has changes that no commit has" in refusal(checkout, VERSION)
