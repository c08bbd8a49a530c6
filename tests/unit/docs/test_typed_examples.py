"""What readers write, checked strictly against the installed package: the documentation's scripts and examples, and a
program that shows the types of the client."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from fakes.docs import PAGES, ROOT, blocks
from tools import CACHE

SCRIPTS = sorted((ROOT / "docs/how-to").glob("*.py"))
PROGRAMS = [page for page in PAGES if any(not block.reason for block in blocks(page, "python"))]

PROGRAM = """
import asyncio
from pathlib import Path

from segserve import AsyncClient, Client, Cluster, InstanceResult, Local, Result, SegserveError, SemanticResult
from segserve_platform.resources import RolloutPhase, SegmentationModel


def areas(result: Result) -> dict[str, int]:
    if isinstance(result, SemanticResult):
        reveal_type(result.labels.ndim)  # int
        return dict(result.areas)
    if isinstance(result, InstanceResult):
        reveal_type(result.instances[0].box)  # tuple[float, float, float, float]
        reveal_type(result.instances[0].score)  # float
    return {}


def serve(path: Path) -> SegmentationModel:
    with Client("http://127.0.0.1:8080", platform=Cluster(namespace="lab"), retries=1) as client:
        reveal_type(client)  # segserve.client.Client
        reveal_type(client.segment(path, model="coins", timeout_s=5).revision)  # str
        reveal_type(client.model_info("coins").classes)  # tuple[segserve.results.values.SegmentClass, ...]
        reveal_type(client.models.list())  # list[segserve_operator.api.segmentation_model.SegmentationModel]
        reveal_type(client.models.wait("coins", for_="Ready").metadata.name)  # str
        reveal_type(client.rollouts.status("coins").phase is RolloutPhase.SUCCEEDED)  # bool
        reveal_type(client.pools.get("default").spec.replicas)  # int
        try:
            return client.models.apply({"kind": "SegmentationModel"}, force=True)
        except SegserveError as error:
            reveal_type(error.status)  # int | str | None
            raise


async def main() -> None:
    async with AsyncClient(platform=Local()) as client:
        result = await client.segment(b"...", model="coins")
        areas(result)
        reveal_type(await client.models.get("coins"))  # segserve_operator.api.segmentation_model.SegmentationModel


asyncio.run(main())
"""


MISTAKEN = """
from segserve import Client

Client().models.wait("coins", for_="Read")
Client().segment(7, model="coins")
"""


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
def mypy_output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Output of mypy for all programs together: most of its time goes into the types of what they import."""
    folder = tmp_path_factory.mktemp("user")
    texts = {module(path): path.read_text() for path in SCRIPTS} | {module(page): program(page) for page in PROGRAMS}
    texts |= {"program.py": PROGRAM, "mistaken.py": MISTAKEN}
    for name, text in texts.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--disable-error-code=import-untyped"]
    command += ["--python-executable", environment(folder), "--cache-dir", str(CACHE / "mypy-user"), *texts]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert f"checked {len(texts)} source files" in done.stdout, done.stdout + done.stderr
    return done.stdout


def environment(folder: Path) -> str:
    """Return the Python of an environment that has the packages as `make demo` and `pip install --editable` list them.

    tests/e2e/test_packaging.py installs them with pip, also from a wheel.
    """
    venv.create(folder / "venv", symlinks=True)
    (own,) = (folder / "venv").glob("lib/python*/site-packages")
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    (own / "_segserve.pth").write_text("\n".join(str(ROOT / source) for source in build["dev-mode-dirs"]))
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))
    return str(folder / "venv/bin/python")


def errors(mypy_output: str, file: str) -> list[str]:
    return [line for line in mypy_output.splitlines() if line.startswith(f"{file}:") and ": error: " in line]


def test_every_script_and_every_page_passes_a_strict_type_checker(mypy_output: str) -> None:
    found = {str(path.relative_to(ROOT)): errors(mypy_output, module(path)) for path in (*SCRIPTS, *PROGRAMS)}

    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_strictly_typed_program_sees_the_types_that_are_documented(mypy_output: str) -> None:
    lines = enumerate(PROGRAM.splitlines(), 1)
    wanted = {number: line.split("  # ")[1] for number, line in lines if "reveal_type(" in line}
    seen = re.findall(r"^program\.py:(\d+): note: Revealed type is \"(.*)\"$", mypy_output, re.MULTILINE)

    assert {int(line): kind.replace("builtins.", "") for line, kind in seen} == wanted
    assert errors(mypy_output, "program.py") == []


def test_a_mistake_in_a_users_program_is_found(mypy_output: str) -> None:
    found = errors(mypy_output, "mistaken.py")

    assert [int(line.split(":")[1]) for line in found] == [4, 5]
    assert mypy_output.splitlines()[-1].startswith("Found 2 errors in 1 file")
