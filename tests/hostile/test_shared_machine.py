"""What another user of the machine gets of a platform and its page by reading: nothing of a caller, and no secret."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bench.coins import variant, write
from bench.platform import platform
from fakes.callers import COIN_PIXELS, PHOTO
from fakes.waiting import HANG_S, until
from fakes.watching import Watched
from segserve import Client, SegserveError
from segserve_builder.render.tritonserver import shm_regions
from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.fleet import GroupFolder
from segserve_operator.adapters.local.leftovers import shm_prefix

pytestmark = pytest.mark.platform

IMAGE = PHOTO[len(PHOTO) // 2 :][:64]
READER = """
import json, os, select, sys
image, temporary = bytes.fromhex(sys.argv[1]), sys.argv[2]
os.setgroups([]), os.setgid(65534), os.setuid(65534)
seen, opened, found = set(), set(), set()

def read(path):
    try:
        with open(path, "rb") as file:
            content = file.read(2**22)
    except OSError:
        return
    seen.add(content)
    if image in content:
        found.add(path)

print("reads", flush=True)
while not select.select([sys.stdin], [], [], 0.02)[0]:
    for name in os.listdir("/dev/shm"):
        if name.startswith("segserve-") and name not in opened:
            # What is open once is read for good, whatever its mode becomes.
            try:
                os.close(os.open("/dev/shm/" + name, os.O_RDONLY))
                opened.add(name)
            except OSError:
                pass
    for folder, _, files in os.walk(temporary):
        for name in files:
            read(os.path.join(folder, name))
    for pid in os.listdir("/proc"):
        if pid.isdigit() and pid != str(os.getpid()):
            for name in ("cmdline", "environ", "maps"):
                read(f"/proc/{pid}/{name}")
print(json.dumps(sorted({*opened, *found})))
sys.stdout.flush()
sys.stdout.buffer.write(b"\\n".join(seen))
"""
BROWSER = """#!/bin/sh
umask 077
sleep 1  # as one that takes its time to start
cp "${1#file://}" "$HOME/opening" && mv "$HOME/opening" "$HOME/opened"
"""


@dataclass
class OtherUser:
    """A process of another user that reads what it can; only root starts one."""

    temporary: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if os.getuid() == 0:
            argv = [sys.executable, "-I", "-S", "-c", READER, IMAGE.hex(), str(self.temporary)]
            self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self.process.stdout is not None
            assert self.process.stdout.readline() == b"reads\n"

    def end(self) -> tuple[list[str], bytes]:
        """Return the regions that it has opened and the files with the image, and what it has read of processes."""
        assert self.process is not None
        places, _, seen = self.process.communicate(b"end", HANG_S)[0].partition(b"\n")
        return json.loads(places), seen


@pytest.fixture
def other_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherUser]:
    with tempfile.TemporaryDirectory(prefix="segserve-tmp-") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setenv("TMPDIR", folder)
        found = OtherUser(Path(folder))
        found.start()
        yield found
        if found.process is not None:
            found.process.kill()
            found.process.wait()


def test_another_user_reads_nothing_of_a_caller_and_no_secret(
    other_user: OtherUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = other_user.temporary / "home"
    home.mkdir()
    (home / "browser").write_text(BROWSER)
    (home / "browser").chmod(0o755)
    # A cache of its own, since the golden images are fetched into it; what is costly to make again is the user's.
    cache = other_user.temporary / "cache"
    cache.mkdir(mode=0o755)
    for each in cache_folder().iterdir():
        if each.name not in ("folders", "partial", "sha256"):
            (cache / each.name).symlink_to(each)
    monkeypatch.setenv("SEGSERVE_CACHE", str(cache))
    secrets: set[bytes] = set()
    modes: dict[str, int] = {}
    with platform(write(home / "model.yaml", variant())) as running:
        coins = Watched(running)
        group = GroupFolder(coins.state.groups / "main")
        prefix = shm_prefix(coins.state, "main")

        def ask() -> None:
            with Client(running.url, timeout_s=HANG_S) as client:
                assert client.segment(PHOTO, model="coins").areas["coin"] in COIN_PIXELS
            secrets.add(group.secret.read_bytes())
            modes.update({name: stat.S_IMODE(Path("/dev/shm", name).stat().st_mode) for name in shm_regions(prefix)})

        ask()
        for ended in (next(iter(coins.instances().values())), coins.process("groups/main/triton")):
            ended.kill()
            until(lambda: _answers(running.url), "the model answers again")
            ask()
        with opened_page(running.state, home) as (url, token):
            secrets.add(token.encode())
            until((home / "opened").exists, "the browser has read its file")
            assert f"{url}/#token={token}" in (home / "opened").read_text()
            answers = [httpx.get(f"{url}{path}") for path in ("/", "/api/models", "/api/samples", "/?token=x")]
        ports = json.loads(group.ports.read_text())
        servers = [running.url, *(f"http://127.0.0.1:{ports[name]}" for name in ("http", "metrics"))]
        said = [
            httpx.get(f"{url}{path}").content
            for url in servers
            for path in ("/", "/metrics", "/v2", "/v2/models/coins")
        ]

    assert len(secrets) == 3, "the secret of two servers and the token of the page"
    assert [path.name for path in cache.glob("folders/*/*")]
    assert len(modes) >= 3
    assert set(modes.values()) == {0o600}
    assert [answer.status_code for answer in answers] == [200, 401, 401, 200]
    said += [answer.content for answer in answers]
    assert [secret for secret in (*secrets, IMAGE) if any(secret in text for text in said)] == []
    if other_user.process is not None:
        places, seen = other_user.end()
        assert [place for place in places if place.startswith(("/", prefix))] == []
        assert b"/tritonserver" in seen
        assert f"{home}/browser".encode() in seen
        assert [secret for secret in secrets if secret in seen] == []


def _answers(url: str) -> bool:
    with Client(url, timeout_s=HANG_S) as client:
        try:
            return bool(client.segment(PHOTO, model="coins"))
        except SegserveError:
            return False


@contextmanager
def opened_page(state: Path, home: Path) -> Iterator[tuple[str, str]]:
    """Run `segserve ui` with a browser, and yield its address and its token."""
    command = [sys.executable, "-m", "segserve_platform.cli", "ui"]
    variables = {"SEGSERVE_STATE": state, "HOME": home, "BROWSER": f"{home}/browser %s", "DISPLAY": ":0"}
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            url, token = child.stdout.readline().split()[1].split("/#token=")
            yield url, token
        finally:
            child.terminate()
