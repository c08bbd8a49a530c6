"""Which tests meet a change: those that import what changed, nearest first."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from impact import EVERY_TEST, changed_files, distances

ROOT = Path(__file__).parents[3]
STAGES = "model_repo_builder/src/segserve_builder/stages"


def nearest(changed: str) -> str:
    found = distances(ROOT, [changed])
    return min(found, key=lambda test: (found[test], test))


@pytest.mark.parametrize(
    ("changed", "test"),
    [
        pytest.param(f"{STAGES}/keypoints.py", "tests/unit/builder/test_rcnn_stages.py", id="a stage"),
        pytest.param(
            "model_repo_builder/src/segserve_common/kserve.py", "tests/unit/client/test_wire.py", id="the wire"
        ),
        pytest.param("tests/fakes/hub.py", "tests/contract/test_sources.py", id="a fake"),
        pytest.param("charts/segserve/values.yaml", "tests/unit/chart/test_chart.py", id="the chart"),
        pytest.param("docs/reference/gates.md", "tests/unit/docs/test_examples.py", id="a page"),
        pytest.param("tests/unit/client/conftest.py", "tests/unit/client/test_client.py", id="fixtures"),
    ],
)
def test_a_change_meets_the_tests_that_import_it(changed: str, test: str) -> None:
    assert distances(ROOT, [changed])[test] == 1


def test_who_imports_it_over_others_comes_later() -> None:
    found = distances(ROOT, [f"{STAGES}/keypoints.py"])

    assert found["tests/unit/builder/test_rcnn_stages.py"] < found["tests/unit/builder/test_stage_contract.py"]
    assert "tests/unit/client/test_retry_after.py" not in found


def test_what_is_no_module_and_in_no_known_folder_meets_every_test() -> None:
    found = distances(ROOT, ["constraints.txt"])

    assert set(found.values()) == {EVERY_TEST}
    assert found.keys() == {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}


def test_edits_and_new_files_have_changed_and_what_git_ignores_has_not(tmp_path: Path) -> None:
    for name in ("edited.py", "same.py", ".gitignore"):
        (tmp_path / name).write_text("ignored.py")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for name in ("edited.py", "new.py", "ignored.py"):
        (tmp_path / name).write_text("other")

    assert changed_files(tmp_path, "HEAD") == ["edited.py", "new.py"]
