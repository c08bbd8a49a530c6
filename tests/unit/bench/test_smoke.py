"""A bench has a smoke run, which writes nothing into the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.smoke import VARIABLE, output, sized

ROOT = Path(__file__).parents[3]


@pytest.mark.same
def test_every_bench_has_a_smoke_run() -> None:
    folder = ROOT / "bench"
    paths = [*folder.glob("*.py"), *folder.glob("*/__main__.py"), folder / "rollout/measured.py"]
    texts = {path: path.read_text() for path in paths}
    programs = {path: text for path, text in texts.items() if '\nif __name__ == "__main__"' in text}

    assert programs
    assert [path for path, text in programs.items() if "from bench.smoke import" not in text] == []


def test_a_whole_run_writes_into_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    assert sized(whole=20, smoke=1) == 20
    assert output("bench/out/stages.md") == ROOT / "bench/out/stages.md"


def test_a_smoke_run_has_figures_of_its_own_and_copies_of_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))

    assert sized(whole=20, smoke=1) == 1
    assert output("bench/out/stages.json") == tmp_path / "bench/out/stages.json"
    page = output("bench/out/stages.md")
    assert page.read_text() == (ROOT / "bench/out/stages.md").read_text()
    page.write_text("changed")
    assert output("bench/out/stages.md").read_text() == "changed"
    assert [path.name for path in (tmp_path / "bench/out").iterdir()] == ["stages.md"]
