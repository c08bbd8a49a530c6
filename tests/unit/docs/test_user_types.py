"""A user's program, typed strictly, is checked against the installed package."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from fakes.docs import ROOT

PROGRAM = """
import asyncio
from pathlib import Path

from segserve import AsyncClient, Client, Cluster, InstanceResult, Local, Result, SegserveError, SemanticResult
from segserve.resources import RolloutPhase, SegmentationModel


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


@pytest.fixture(scope="module")
def mypy_output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Output of mypy for both programs, in an environment that has the packages installed."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "mistaken.py").write_text(MISTAKEN)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", environment(folder)]
    # The types of numpy and pydantic are read once, not at every run.
    command += ["--cache-dir", str(ROOT / ".mypy_cache/user"), "program.py", "mistaken.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def environment(folder: Path) -> str:
    """Return the Python of an environment that has the packages as `make demo` and `pip install --editable` list them.

    tests/e2e/test_packaging.py installs them with pip.
    """
    venv.create(folder / "venv", symlinks=True)
    (own,) = (folder / "venv").glob("lib/python*/site-packages")
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    (own / "_segserve.pth").write_text("\n".join(str(ROOT / source) for source in build["dev-mode-dirs"]))
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))
    return str(folder / "venv/bin/python")


def test_a_strictly_typed_program_sees_the_types_that_are_documented(mypy_output: str) -> None:
    lines = enumerate(PROGRAM.splitlines(), 1)
    wanted = {number: line.split("  # ")[1] for number, line in lines if "reveal_type(" in line}
    seen = re.findall(r"^program\.py:(\d+): note: Revealed type is \"(.*)\"$", mypy_output, re.MULTILINE)

    assert {int(line): kind.replace("builtins.", "") for line, kind in seen} == wanted
    assert "program.py:" not in "".join(line for line in mypy_output.splitlines() if "error:" in line), mypy_output


def test_a_mistake_in_a_users_program_is_found(mypy_output: str) -> None:
    errors = [line for line in mypy_output.splitlines() if line.startswith("mistaken.py:") and "error:" in line]

    assert [int(line.split(":")[1]) for line in errors] == [4, 5]
    assert mypy_output.splitlines()[-1].startswith("Found 2 errors in 1 file")
