"""The local platform from `up` to `down`, and the command line between them."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc

from bench.platform import MODELS, TIMEOUT, Running, platform
from bench.ports import free_port
from fakes.callers import COIN_PIXELS, PHOTO
from fakes.waiting import HANG_S, until
from fakes.watching import Watched, segserve
from segserve import Client, SegserveError
from segserve_builder.render.tritonserver import Ports, shm_regions, sweep_shm
from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.leftovers import sweep_step_environments
from segserve_operator.adapters.local.runtime import ensure_runtime
from segserve_operator.adapters.local.triton import triton_command
from suite_run import shm_prefix

pytestmark = pytest.mark.platform

Edit = Callable[..., Path]


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """A platform that runs beside those of the tests."""
    with platform(MODELS) as running:
        yield Watched(running)


@dataclass
class Bed:
    """A state folder, a folder for temporary files and a port, for platforms that a test starts and ends."""

    state: Path
    temporary: Path
    port: int

    def segserve(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "segserve_platform.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SEGSERVE_STATE": str(self.state), "TMPDIR": str(self.temporary)}

    @property
    def running(self) -> Running:
        return Running(f"http://127.0.0.1:{self.port}", self.state)

    def up(self, *arguments: str) -> None:
        done = self.segserve("up", "--detach", "--timeout", TIMEOUT, "--port", str(self.port), *arguments)
        assert done.returncode == 0, done.stderr

    def coins(self) -> tuple[str, int]:
        with Client(self.running.url) as client:
            found = client.segment(PHOTO, model="coins")
        return found.revision, found.areas["coin"]

    def left_behind(self) -> list[object]:
        """Return all that a platform of this bed has left: nothing, after `down`."""
        prefix = Watched(self.running).state.shm_prefix
        files = [*Path("/dev/shm").glob(f"{prefix}*"), *self.state.glob("**/*"), *self.temporary.iterdir()]
        folder = [self.state] if self.state.exists() else []
        return [*self.running.processes(), *files, *folder, *([self.port] if is_taken(self.port) else [])]


@pytest.fixture
def bed() -> Iterator[Bed]:
    # Not below tmp_path: the path of Envoy's admin socket must stay short.
    folder = Path(tempfile.mkdtemp(prefix="segserve-"))
    (folder / "tmp").mkdir()
    made = Bed(folder / "state", folder / "tmp", free_port())
    yield made
    segserve(made.state, "down")
    shutil.rmtree(folder)


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_down_forget_leaves_nothing_and_a_second_platform_notices_nothing(bed: Bed, watched: Watched) -> None:
    others = {process.pid for process in watched.running.processes()}
    folders = set(Path("/tmp").glob("python_env_*"))
    bed.up("-f", str(MODELS))
    assert bed.coins()[1] in COIN_PIXELS
    assert {process.pid for process in bed.running.processes()}.isdisjoint(others)

    first, second = bed.segserve("down", "--forget"), bed.segserve("down")

    removed = "models removed: coins, coins-instances, coins-twostage"
    assert (first.returncode, first.stdout) == (0, f"the platform was stopped; {removed}\n")
    assert (second.returncode, second.stdout) == (0, "no platform was running\n")
    assert bed.left_behind() == []
    # Triton makes one in this very place, whatever TMPDIR says; those that are nobody's would be removed now.
    assert set(sweep_step_environments()) <= folders
    assert {process.pid for process in watched.running.processes()} == others
    with Client(watched.running.url, retries=0) as client:
        assert client.segment(PHOTO, model="coins").areas["coin"] in COIN_PIXELS


def test_down_ends_what_a_killed_supervisor_left_and_keeps_the_models(bed: Bed, edited: Edit) -> None:
    bed.up("-f", str(edited()))
    served = bed.coins()
    Watched(bed.running).supervisor().kill()

    assert bed.segserve("down").returncode == 0
    assert bed.running.processes() == []
    assert not is_taken(bed.port)

    bed.up()
    assert bed.coins() == served
    assert bed.segserve("down", "--forget").returncode == 0
    assert bed.left_behind() == []


def test_commands_that_start_a_platform_at_once_share_its_supervisor(bed: Bed, edited: Edit) -> None:
    bed.up("-f", str(edited()))
    served = bed.coins()
    Watched(bed.running).supervisor().kill()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: bed.up(), range(3)))

    words = [each.cmdline() for each in bed.running.processes()]
    assert len([each for each in words if "segserve_operator.local_platform" in each]) == 1
    assert bed.coins() == served


def is_other(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() != content
    except FileNotFoundError:  # it is being replaced
        return False


def test_a_damaged_status_takes_no_model_away(bed: Bed, edited: Edit) -> None:
    bed.up("-f", str(edited()))
    served = bed.coins()
    status = bed.state / "objects/SegmentationModel/coins/status.yaml"

    for damage in (b"", b"\xff\xfe", b"[1]"):
        assert bed.segserve("down").returncode == 0
        status.write_bytes(damage)
        bed.up()
        assert bed.coins() == served
        status.write_bytes(damage)
        until(partial(is_other, status, damage), "the status is written again")
        assert bed.coins() == served

    events = bed.segserve("describe", "coins").stdout
    assert "StatusUnreadable" in events
    assert f"{served[0]} serves" in " ".join(events.split())


def test_up_says_who_has_the_port_and_starts_nothing(bed: Bed) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", bed.port))
        holder.listen()
        done = bed.segserve("up", "--port", str(bed.port), "-f", str(MODELS))

    assert done.returncode == 1
    assert done.stderr == (
        f"error: port {bed.port} is in use by {psutil.Process().name()} (process {os.getpid()}); "
        "stop that process, or choose a port with --port\n"
    )
    assert bed.left_behind() == []


@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN], ids=["in a shell", "below a background job"])
def test_up_in_front_of_a_terminal_shows_the_models_until_ctrl_c_stops_all_and_keeps_them(
    bed: Bed, inherited: signal.Handlers
) -> None:
    """A shell without job control starts what is in the background with SIGINT ignored."""
    argv = [sys.executable, "-m", "segserve_platform.cli", "up", "--port", str(bed.port), "-f", str(MODELS)]
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, inherited)
        os.execve(sys.executable, argv, bed.environment | {"COLUMNS": "160", "LINES": "40", "TERM": "xterm"})
    shown = read_until(terminal, r"coins\s+True\s+coins-[0-9a-f]{10}.*coins-instances\s+True")
    assert bed.coins()[1] in COIN_PIXELS

    os.write(terminal, b"\x03")
    read_until(terminal, "the platform was stopped")
    _, status = os.waitpid(child, 0)
    os.close(terminal)

    assert os.waitstatus_to_exitcode(status) == 130
    assert f"http://127.0.0.1:{bed.port}" in shown
    assert re.search(r"coins-instances: ready after [0-9.]+ s \(.*golden images [0-9.]+ s", shown)
    assert "Traceback" not in shown
    assert (bed.running.processes(), is_taken(bed.port)) == ([], False)
    assert "models removed: coins, coins-instances, coins-twostage" in bed.segserve("down", "--forget").stdout
    assert bed.left_behind() == []


def test_up_in_the_background_takes_no_ctrl_c_and_forgets_everything_when_it_is_told_to(bed: Bed) -> None:
    up = f'"{sys.executable}" -m segserve_platform.cli up --forget --port {bed.port} -f "{MODELS}"'
    script = f"exec {up} & echo $!; wait $!"
    with subprocess.Popen(["sh", "-c", script], env=bed.environment, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        job = psutil.Process(int(shell.stdout.readline()))
        until(lambda: serves(bed), "the models are served")

        job.send_signal(signal.SIGINT)
        assert bed.coins()[1] in COIN_PIXELS
        job.terminate()

        assert shell.wait(HANG_S) == 128 + signal.SIGTERM
        assert "the platform was stopped" in shell.stdout.read()
    assert bed.left_behind() == []


def serves(bed: Bed) -> bool:
    try:
        return bed.coins()[1] in COIN_PIXELS
    except SegserveError:
        return False


def read_until(terminal: int, pattern: str) -> str:
    """Return what a terminal shows, without its control sequences, once it matches."""
    deadline_s, raw = time.monotonic() + HANG_S, b""
    while time.monotonic() < deadline_s:
        if select.select([terminal], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                raw += os.read(terminal, 65536)
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw.decode(errors="replace"))
        if re.search(pattern, text, re.DOTALL):
            return text
    raise AssertionError(f"{pattern!r} was not shown: {text[-2000:]}")


def test_a_running_platform_keeps_its_port(watched: Watched) -> None:
    done = segserve(watched.running.state, "up", "--detach", "--port", "1")

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: the platform runs at {watched.running.url}; stop it with `segserve down` before changing --port"
    ]


def test_the_built_repository_is_served_by_a_triton_of_ones_own(tmp_path: Path, photo: bytes) -> None:
    repository, prefix = tmp_path / "repository", shm_prefix()
    built = segserve(tmp_path, "build", "-f", str(MODELS), "-o", str(repository))
    assert built.returncode == 0, built.stderr

    grpc = free_port()
    ports = Ports(free_port(), grpc, free_port())
    runtime = ensure_runtime(cache_folder())
    command = triton_command(runtime, repository, ports=ports, shm_prefix=prefix, api_secret="word")
    with (tmp_path / "triton.log").open("wb") as log:
        server = subprocess.Popen([*command.argv, "--load-model=*"], env=command.environment, stdout=log, stderr=log)
    try:
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc}")
        until(lambda: is_taken(grpc) and client.is_model_ready("coins"), "the model is loaded")
        image = tritonclient.grpc.InferInput("IMAGE", [1], "BYTES")
        image.set_data_from_numpy(np.array([photo], dtype=object))
        answer = client.infer("coins", [image])
        client.close()
    finally:
        server.terminate()
        server.wait(HANG_S)
        sweep_shm(prefix)

    assert answer.as_numpy("AREAS")[1] in COIN_PIXELS
    assert shm_regions(prefix) == ()


@pytest.fixture
def own_triton(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The program of a Triton as it is installed, with its backends beside it, and its environment."""
    runtime = ensure_runtime(cache_folder())
    root = tmp_path / "tritonserver"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tritonserver").symlink_to(runtime.tritonserver)
    (root / "backends").symlink_to(runtime.backends)
    ports = Ports(free_port(), free_port(), free_port())
    command = triton_command(runtime, tmp_path, ports=ports, shm_prefix=shm_prefix(), api_secret="unused")
    shown = {name: value for name, value in command.environment.items() if not name.startswith("--")}
    return root / "bin/tritonserver", shown


def build(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-m", "segserve_platform.cli", "build", "-f", str(MODELS), *arguments)
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG_S)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        pytest.param((), {"pre", "net", "post"}, id="cores are not known"),
        pytest.param(("--cpus", "2"), {"pipeline"}, id="two cores"),
    ],
)
def test_a_triton_of_ones_own_is_checked_to_answer_the_golden_images(
    tmp_path: Path, own_triton: tuple[Path, dict[str, str]], options: tuple[str, ...], kinds: set[str]
) -> None:
    program, environment = own_triton
    done = build(tmp_path, environment, "-o", "out", "--check", str(program), *options)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    written = [line.removesuffix(" written to out") for line in lines[:3]]
    assert [line.split(" ")[0] for line in lines[3:]] == written
    assert all(re.search(r" answers its \d+ golden images by ", line) for line in lines[3:])
    assert {path.name.split("--")[1] for path in (tmp_path / "out").glob("segserve--*")} == kinds
    # Of Triton and of what it wrote nothing is left.
    assert {path.name for path in tmp_path.iterdir()} == {"out", "tritonserver"}


def test_a_program_that_is_no_triton_is_named(tmp_path: Path) -> None:
    done = build(tmp_path, dict(os.environ), "-o", "out", "--check", "/bin/true")

    assert done.returncode == 1
    assert "/bin/true is not an installed tritonserver" in done.stderr
