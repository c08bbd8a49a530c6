"""Commands typed in a folder of somebody else's files run none of them, nor does anything that they start."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main

from bench.platform import MODELS, ROOT, TIMEOUT
from bench.ports import free_port
from fakes.waiting import HANG_S
from segserve_operator.adapters.local import processes
from segserve_platform.cli.app import app, loaded

SOURCES: Final = [ROOT / "client/src", ROOT / "operator/src", ROOT / "model_repo_builder/src"]
START: Final = ROOT / "model_repo_builder/src/segserve_common/interpreter.py"
CODE: Final = "import os\nopen(os.path.join(os.path.dirname(__file__), 'RAN'), 'a').write(__file__ + '\\n')\n"
NUMBA: Final = "cache_dir: kernels\ncache_locator_classes: UserProvidedCacheLocator\n"
"""A cache of compiled functions consists of pickles."""

UP: Final = f"up --detach --timeout {TIMEOUT} --port {{port}} -f model.yaml"
STARTING: Final = ("init photos net.onnx -o made --name made", UP, "predict coins photos/coins.png", "down --forget")
"""Those with the most children: trial runs, the supervisor, Triton with its steps, the agent."""
ALL: Final = (
    *STARTING[:-1],
    "get",
    "describe coins",
    "why coins",
    "wait coins",
    "doctor",
    "logs",
    "version",
    "batch coins photos/coins.png --output batch",
    "eval coins --data labels.json",
    "diff coins coins photos",
    "openapi coins",
    "apply -f model.yaml",
    "build -f model.yaml -o built",
    "export model.yaml --precision fp16 --images photos",
    "calibrate photos photos -f model.yaml",
    "golden digest golden/semantic",
    "golden record photos -f model.yaml",
    "golden cascade -f model.yaml",
    "golden threshold photos -f model.yaml",
    "samples list coins",
    "samples show coins 1763800000000-0123456789abcdef",
    "samples export coins --output samples",
    "samples label-back coins labels.json --golden golden/semantic",
    "samples delete coins --older-than 720h",
    "rollout status coins",
    "rollout list",
    "rollout replay coins",
    "rollout sheet coins -o sheet",
    *(f"rollout {verb} coins --timeout 1s" for verb in ("promote", "abort", "pause", "resume", "retry", "rollback")),
    "rollout skip-gate latency coins --timeout 1s",
    "runtime install",
    "crds",
    "schema",
    "completion bash",
    "delete coins",
    STARTING[-1],
    "demo -o shown",
    "ui --no-open --port {port}",
    "annotate coins --port {port}",
)
"""In this order. What matters is what they start on their way, so that some may end with an error."""
SUCCEED: Final = ("init", "up", "predict", "export", "build", "demo", "ui")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    for name, listed in group.commands.items():
        found = listed if path else loaded(name)
        yield from commands(found, (*path, name)) if hasattr(found, "commands") else [" ".join((*path, name))]


def importable() -> set[str]:
    """Return the names of all modules that a process may import."""
    installed = {name for name in packages_distributions() if name.isidentifier()}
    return {*sys.stdlib_module_names, *installed, "numpy", "yaml", "psutil", "pydantic", "json", "sitecustomize"}


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """A folder with a model, photographs, and a file that is taken for each module if it is looked for there."""
    for name in importable():
        (tmp_path / f"{name}.py").write_text(CODE)
    (tmp_path / ".numba_config.yaml").write_text(NUMBA)
    (tmp_path / "photos").mkdir()
    shutil.copy(MODELS.parent / "coins.png", tmp_path / "photos")
    shutil.copy(MODELS.parent / "coins-unet.onnx", tmp_path / "net.onnx")
    shutil.copy(MODELS.parent / "coins-unet.onnx", tmp_path)
    shutil.copytree(MODELS.parent / "golden", tmp_path / "golden")
    (tmp_path / "model.yaml").write_text(MODELS.read_text().split("---")[0])
    return tmp_path


def test_a_planted_module_is_run_by_an_interpreter_that_looks_there(downloads: Path) -> None:
    subprocess.run([sys.executable, "-m", "this"], cwd=downloads, capture_output=True, check=False)

    assert (downloads / "RAN").exists()


def test_every_command_is_among_them() -> None:
    names = set(commands(typer.main.get_command(app)))

    assert {name for name in names for line in ALL if f"{line} ".startswith(f"{name} ")} == names


@pytest.mark.platform
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "lines", [pytest.param(STARTING, id="those that start others", marks=pytest.mark.core), pytest.param(ALL, id="all")]
)
def test_no_command_runs_code_of_the_folder_where_it_is_typed(downloads: Path, lines: tuple[str, ...]) -> None:
    port, segserve = free_port(), str(Path(sys.executable).with_name("segserve"))
    ran: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="segserve-") as state:
        environment = os.environ | {"SEGSERVE_STATE": state, "COLUMNS": "200"}
        try:
            for line in lines:
                with subprocess.Popen(
                    [segserve, *line.format(port=port).split()],
                    cwd=downloads, env=environment, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                ) as child:  # fmt: skip
                    assert child.stdout is not None
                    if line.startswith(("ui ", "annotate ")):
                        said = child.stdout.readline()
                        child.terminate()
                    else:
                        said = child.communicate(timeout=HANG_S)[0]
                if (downloads / "RAN").exists():
                    ran[line] = (downloads / "RAN").read_text().split()
                    (downloads / "RAN").unlink()
                assert not line.startswith(SUCCEED) or "error" not in said.lower(), said
        finally:
            processes.end_marked_processes(Path(state), grace_s=5)

    assert ran == {}
    assert not (downloads / "kernels").exists()


def test_python_is_started_by_one_function_alone() -> None:
    found = {}
    for path in sorted(file for source in SOURCES for file in source.rglob("*.py") if file != START):
        text = path.read_text()
        if "sys.executable" not in text and '"-m"' not in text:
            continue
        tree = ast.parse(text)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "python"]
        # In a container the folder is one of the image.
        containers = [node for node in ast.walk(tree) if isinstance(node, ast.List | ast.Tuple)
                      and node.elts and ast.unparse(node.elts[0]) == "'python3'"]  # fmt: skip
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        allowed = {id(node) for whole in (*calls, *containers, *texts) for node in ast.walk(whole)}
        starts = [node.lineno for node in ast.walk(tree) if id(node) not in allowed and _starts_python(node)]
        if starts:
            found[str(path.relative_to(ROOT))] = starts

    assert found == {}


def _starts_python(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) == "sys.executable"
    return isinstance(node, ast.Constant) and node.value == "-m"
