"""Every Python block of the documentation runs as it is shown, page by page; so do the first commands of the README."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from bench.platform import MODELS, ROOT, Running, platform
from bench.ports import free_port
from fakes.docs import PAGES, Block, blocks

pytestmark = pytest.mark.platform

RUN = {
    page: [block for block in blocks(page, "python") if not block.reason]
    for page in PAGES
    if any(not block.reason for block in blocks(page, "python"))
}


def program(found: list[Block]) -> str:
    """Return one program of a page's blocks, whose tracebacks name the page's lines."""
    parts = [f"exec(compile({chr(10) * (block.line - 1) + block.text!r}, {block.place!r}, 'exec'))" for block in found]
    return "\n".join(parts)


@pytest.fixture(scope="module")
def examples() -> Iterator[Running]:
    """All models that pages name, served."""
    with platform(MODELS, ROOT / "examples/prompt/model.yaml") as running:
        yield running


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_of_a_page_runs(page: Path, examples: Running, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "token.txt").write_text("0123\n")
    with Image.open(ROOT / "examples/coins/coins.png") as photo:
        for name in ("photo.jpg", "photo.png", "a.png", "b.png"):
            photo.convert("RGB").save(tmp_path / name)
    own = {name: value for name, value in os.environ.items() if not name.startswith("SEGSERVE_")}

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program(RUN[page])],
        cwd=tmp_path,
        env=own | {"SEGSERVE_URL": examples.url, "SEGSERVE_STATE": str(examples.state)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


README = ROOT / "README.md"
FIRST = ("git clone", "segserve init")
"""How the README's blocks begin that a new user copies."""
UI_S, INTERRUPTED = 10, 130
"""How long its page is looked at before Ctrl-C, and the exit status after that."""


@pytest.mark.timeout(1200)
def test_the_first_commands_of_the_readme_run_in_one_shell(tmp_path: Path) -> None:
    """From a clone of this checkout's last commit, with an own port and state; downloads of earlier runs are used."""
    shown = [block.text for block in blocks(README, "console") if block.text.startswith(FIRST)]
    address = shown[0].split()[2]
    state = Path(tempfile.mkdtemp(prefix="segserve-"))  # the path of Envoy's admin socket must be short
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "examples/coins/coins.png", tmp_path / "photos/photo.png")
    with Image.open(ROOT / "examples/coins/coins.png") as photo:
        photo.convert("RGB").save(tmp_path / "photos/photo.jpg")
    script = shown[0] + "cp -r ../photos . && cp examples/coins/coins-unet.onnx coins.onnx\n"
    ui = f"timeout --preserve-status --signal INT {UI_S} segserve ui || [ $? = {INTERRUPTED} ]"
    script += shown[1].replace("segserve up", f"segserve up --port {free_port()}").replace("segserve ui", ui)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SEGSERVE_", "MAKE"))}
    # git takes the checkout for the address that is shown.
    git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{ROOT}.insteadOf", "GIT_CONFIG_VALUE_0": address}

    try:
        done = subprocess.run(
            ["bash", "-ex"],
            input=script,
            cwd=tmp_path,
            env=own | git | {"SEGSERVE_STATE": str(state)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(
            [sys.executable, "-m", "segserve_platform.cli", "down"],
            env=own | {"SEGSERVE_STATE": str(state)},
            check=False,
        )
        shutil.rmtree(state, ignore_errors=True)

    assert done.returncode == 0, done.stdout + done.stderr
    clone = tmp_path / "segserve"
    assert (clone / "out/coins-instances.png").exists()
    assert {path.name for path in (clone / "overlays").iterdir()}
    assert done.stdout.splitlines()[-1].startswith("the platform was stopped")
