"""`segserve ui` and `segserve up --open`: what is printed, and what stands in their way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest

from fakes.control import LocalHarness
from fakes.waiting import HANG_S
from segserve_platform.platforms.selection import open_platform
from segserve_ui.backend import UiPlatform
from segserve_ui.guard import PageAccess
from segserve_ui.server import open_browser, serving

from ..conftest import Command

ADDRESS = re.compile(r"page: (http://127\.0\.0\.1:(\d+)/#token=(\S+))")


def test_the_page_is_served_until_it_is_ended_and_its_address_opens_it(local: LocalHarness) -> None:
    environment = {**os.environ, "SEGSERVE_STATE": str(local.state.root)}
    command = [sys.executable, "-m", "segserve_platform.cli", "ui", "--no-open"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            found = ADDRESS.match(child.stdout.readline())
            assert found is not None
            models = f"http://127.0.0.1:{found[2]}/api/models"
            answer = httpx.get(models, headers={"authorization": f"Bearer {found[3]}"})
            refused = httpx.get(models)
        finally:
            child.send_signal(signal.SIGTERM)
        _, complaint = child.communicate(timeout=HANG_S)

    assert (answer.status_code, refused.status_code) == (200, 401)
    assert (child.returncode, complaint) == (128 + signal.SIGTERM, "")


def test_a_taken_port_is_named(command: Command, local: LocalHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("SEGSERVE_STATE", str(local.state.root))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, complaint = command("ui", "--no-open", "--port", port)

    assert code == 1
    assert f"the page cannot listen at 127.0.0.1:{port}: Address already in use; choose another --port" in complaint


def test_a_port_that_is_none_is_an_error(command: Command) -> None:
    assert "--port must be within 1..65535, got 70000" in command("ui", "--port", 70000)[2]


@pytest.mark.parametrize("arguments", [("ui",), ("up", "--open")], ids=["ui", "up"])
def test_without_its_extra_the_page_says_how_to_get_it(
    arguments: tuple[str, ...], command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(sys.modules, "starlette", None)

    code, _, complaint = command(*arguments)

    assert code == 1
    assert complaint == "error: this needs starlette: pip install 'segserve[ui]'\n"


def test_a_page_cannot_go_on_beside_a_detached_platform(command: Command) -> None:
    code, _, complaint = command("up", "--detach", "--open")

    assert code == 2
    assert "with --detach, `segserve ui`" in " ".join(complaint.split())


def test_where_there_is_no_display_no_browser_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webbrowser.open", lambda _: pytest.fail("a browser was started"))
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    assert open_browser(PageAccess(4711)) is False


def test_a_browsers_command_line_names_a_private_file_that_ends_with_the_page(
    local: LocalHarness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("HOME", str(tmp_path))
    place = UiPlatform(local.place(), open_platform(local.place()), lambda _: nullcontext(""), None)

    with serving(place) as access:
        assert open_browser(access)
        (file,) = (Path(url.removeprefix("file://")) for url in opened)
        assert access.token not in str(file)
        assert file.stat().st_mode & 0o777 == 0o600
        assert access.url in file.read_text()

    assert not file.exists()


def test_where_that_file_cannot_be_written_no_browser_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda _: pytest.fail("a browser was started"))
    monkeypatch.setenv("DISPLAY", ":0")
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert open_browser(PageAccess(4711)) is False
