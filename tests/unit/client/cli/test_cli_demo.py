"""`segserve demo`: which kernels it needs, where its files are, and that its platform ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segserve_builder.kernels.cache import FOLDER
from segserve_builder.kernels.sources import module_imports, with_imports
from segserve_operator.adapters.local.runtime import InstallStep
from segserve_platform.cli import demo, lifecycle
from segserve_platform.cli.installation import installation_progress
from segserve_platform.platforms.local import local_store

from .conftest import Command

ROOT = Path(__file__).parents[4]
IMPORTED_BY_THE_COINS = """
import sys
import segserve_builder.steps.tiling
from examples.coins.in_process import in_process, resources
from segserve_builder.stages.base import RequestOptions
for resource in resources().values():
    in_process(resource).answer(open("examples/coins/coins.png", "rb").read(), RequestOptions())
print(*(name.rpartition(".")[2] for name in sys.modules if name.startswith("segserve_builder.kernels.")))
"""


def test_the_kernels_that_are_compiled_first_are_all_that_the_coins_need(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path))
    command("apply", "-f", ROOT / "examples/coins/model.yaml")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_BY_THE_COINS], cwd=ROOT, capture_output=True, text=True, check=True
    )

    needed = set(done.stdout.split()) - {"cache", "sources"}  # of these two nothing is compiled
    imports = module_imports(FOLDER)
    assert {"labels", "nms", "paste"} <= needed
    compiled = lifecycle.needed_kernels(local_store())
    assert needed - with_imports(compiled, imports) == set()
    assert len(with_imports(compiled, imports)) < len(imports) * 2 / 3


def test_a_checkout_serves_the_example_that_users_read() -> None:
    assert demo.coins_folder() == ROOT / "examples/coins"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError("the disk is full"), 1)])
def test_the_platform_and_its_folder_are_gone_after_a_failure(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int
) -> None:
    stored: list[bool] = []

    def fail() -> None:
        stored.append((Path(os.environ["SEGSERVE_STATE"]) / "objects").exists())
        raise error

    monkeypatch.setenv("SEGSERVE_STATE", "is restored after the test")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(lifecycle, "install_runtime", fail)

    assert command("demo", "-o", tmp_path / "out")[0] == code
    assert stored == [True]
    assert not list(tmp_path.glob("segserve-demo-*"))


def test_a_pipe_gets_a_few_lines_of_a_step_with_many_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with installation_progress() as show:
        for done in range(41):
            show(InstallStep("compiling kernels", done, 40))

    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"compiling kernels {done}/40" for done in (0, 10, 20, 30, 40)]
