"""Benches and demos with the least load: they check what they measure, and write to the folder that is given."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from _pytest.mark import ParameterSet

ROOT: Final = Path(__file__).parents[2]
COINS: Final = ROOT / "examples/coins"
RULES: Final = {
    name: rule
    for rule in re.split(r"\n(?=[a-z])", (ROOT / "Makefile").read_text())
    if re.match(r"bench|demo|gpu", name := rule.partition(":")[0]) and ":=" not in rule.partition("\n")[0]
}
"""Rules of the Makefile's benches and demos by target."""
ON_A_CPU: Final = "bench.engines"
"""A rule runs it on a GPU alone."""
PROGRAMS: Final = sorted(
    name
    for path in (ROOT / "bench").glob("*.py")
    if "\nif __name__ ==" in path.read_text()
    and ((name := f"bench.{path.stem}") == ON_A_CPU or not any(name in rule for rule in RULES.values()))
)
"""Benches that are run by name."""
ARGUMENTS: Final[Mapping[str, Sequence[str]]] = {
    "bench.engines": ["--int8"],
    "bench.layouts": [str(COINS / "coins.png"), str(COINS / "model.yaml")],
}
PRINTED: Final = ("bench.local_kills",)
"""Of these nothing is written."""
MARKS: Final = {
    "bench-exporters": pytest.mark.needs("exporters"),
    "bench-operator": pytest.mark.needs("kubectl"),
    "bench-prompt": pytest.mark.needs("kubectl"),
    "bench-rollout-peers": pytest.mark.needs("hours"),
    "bench-stages": pytest.mark.needs("torchvision", "pydensecrf"),
    "bench.layouts": pytest.mark.needs("triton"),
    "bench.ui": pytest.mark.needs("chromium"),
    "gpu": pytest.mark.needs("gpu"),
    **{f"bench.operator_{name}": pytest.mark.needs("kubectl") for name in ("faults", "mutations", "soak")},
}


def runs(names: Sequence[str]) -> list[ParameterSet]:
    return [pytest.param(name, marks=MARKS.get(name, ())) for name in names]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", runs([*RULES, *PROGRAMS]))
def test_a_smoke_run_passes_and_writes_to_its_folder_alone(name: str, tmp_path: Path) -> None:
    committed = contents(ROOT / "bench/out", ROOT / "docs")
    by_name = [sys.executable, "-m", name, *ARGUMENTS.get(name, ())]
    command = ["make", name, f"SMOKE={tmp_path}"] if name in RULES else by_name
    variables = {"PYTHONPATH": "tests", "SEGSERVE_BENCH_SMOKE": str(tmp_path)}

    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-4000:]
    assert contents(ROOT / "bench/out", ROOT / "docs") == committed
    written = contents(tmp_path)
    assert written or name in PRINTED
    copied = [path for path, content in written.items() if committed.get(ROOT / path.relative_to(tmp_path)) == content]
    assert copied == [], "these were not written"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_the_bench_of_a_gpu_says_that_there_is_none_before_it_installs_anything(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "gpu", f"VENV={tmp_path}/venv"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode
    assert "nvidia-smi shows no GPU: `make gpu` needs a machine with a GPU and NVIDIA's driver" in done.stderr
    assert list(tmp_path.iterdir()) == []


def contents(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
