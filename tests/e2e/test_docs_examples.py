"""Every Python block of the documentation runs as it is shown, page by page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bench.platform import ROOT, Running
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


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_of_a_page_runs(page: Path, coins: Running, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "token.txt").write_text("0123\n")
    with Image.open(ROOT / "examples/coins/coins.png") as photo:
        for name in ("photo.jpg", "photo.png", "a.png", "b.png"):
            photo.convert("RGB").save(tmp_path / name)
    own = {name: value for name, value in os.environ.items() if not name.startswith("SEGSERVE_")}

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program(RUN[page])],
        cwd=tmp_path,
        env=own | {"SEGSERVE_URL": coins.url, "SEGSERVE_STATE": str(coins.state)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
