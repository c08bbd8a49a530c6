"""A file that somebody sent, given to `segserve export`: what its code tries in the sandbox that reads it."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segserve_builder.errors import ExportError
from segserve_builder.export import sandbox
from segserve_platform.cli.app import app

ROOT = Path(__file__).parents[2]
Attack = Callable[[str], bytes]
SECRET = "a-word-that-nobody-may-see"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user with a key, and a word in the environment."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True)
    (folder / ".ssh/id_ed25519").write_text(SECRET)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    """Run code in the sandbox, as a hole in torch would, and return what it could write."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/attack.py").write_text(
        "import ctypes, os, socket, subprocess, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def must(result):\n"
        "    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))\n"
        "def perform(source, options, output):\n"
        "    exec(options['code'], {**globals(), 'output': output})\n"
    )
    packages = sandbox._packages()
    monkeypatch.setattr(sandbox, "_packages", lambda: [*packages, str(tmp_path / "code")])
    (tmp_path / "model.pt").write_text("a model")

    def attack(code: str) -> bytes:
        sandbox.run(sandbox.Task("attack", tmp_path / "model.pt", {"code": code}), tmp_path / "answer")
        return (tmp_path / "answer").read_bytes()

    return attack


def test_what_the_sandbox_is_for_still_works(run: Attack, tmp_path: Path) -> None:
    assert run(f"output.write(open({str(tmp_path / 'model.pt')!r}, 'rb').read())") == b"a model"


def test_a_package_that_looks_for_a_library_finds_none_and_goes_on(run: Attack) -> None:
    """As torch built for CUDA does on import: to look for one, Python would run a compiler and write a file."""
    assert run("import ctypes.util; output.write(repr(ctypes.util.find_library('dl')).encode())") == b"None"


KEY = "os.path.join({home!r}, '.ssh/id_ed25519')"
ATTACKS = {
    "read a key": f"output.write(open({KEY}, 'rb').read())",
    "list the home folder": "output.write(repr(os.listdir({home!r})).encode())",
    "read the parent's environment": "output.write(open('/proc/{parent}/environ', 'rb').read())",
    "read the parent's memory": "open('/proc/{parent}/mem', 'rb')",
    "read the parent's files": "os.listdir('/proc/{parent}/root')",
    "attach to the parent": "must(libc.ptrace(16, {parent}, 0, 0))",
    "stop the parent": "os.kill({parent}, 19)",
    "limit the parent": "import resource; resource.prlimit({parent}, resource.RLIMIT_CPU, (1, 1))",
    "write a key": f"open({KEY}, 'w').write('mine')",
    "truncate a key by opening it": f"os.open({KEY}, os.O_RDONLY | os.O_TRUNC)",
    "truncate a key": f"os.truncate({KEY}, 0)",
    "open a key to the world": f"os.chmod({KEY}, 0o777)",
    "open a file that it reads to the world": "os.fchmod(os.open({model!r}, os.O_RDONLY), 0o4777)",
    "give a file that it reads to others": "os.fchown(os.open({model!r}, os.O_RDONLY), 1, 1)",
    "mark a file that it reads": "os.setxattr(os.open({model!r}, os.O_RDONLY), 'user.mark', b'mine')",
    "unmark a file that it reads": "os.removexattr(os.open({model!r}, os.O_RDONLY), 'user.mark')",
    "date a key back": f"os.utime({KEY}, (0, 0))",
    "remove a key": f"os.unlink({KEY})",
    "rename a key": f"os.rename({KEY}, {KEY} + '.old')",
    "link a key": f"os.link({KEY}, {KEY} + '.link')",
    "leave a link": "os.symlink('/etc/passwd', os.path.join({home!r}, 'link'))",
    "make a folder": "os.mkdir(os.path.join({home!r}, 'folder'))",
    "start a program": "subprocess.run(['/bin/true'])",
    "become a program": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "make a socket of the network": "socket.socket().connect(('127.0.0.1', {port}))",
    "send a datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
    "connect to an agent's socket": "socket.socket(socket.AF_UNIX).connect({socket!r})",
    "connect to an abstract socket": "socket.socket(socket.AF_UNIX).connect('\\0segserve')",
    "call the kernel for a socket": "must(libc.syscall({socket_call}, 1, 1, 0))",
    "call it by the x32 interface": "must(libc.syscall(0x40000000 + 41, 1, 1, 0))",
    "queue work for the kernel": "must(libc.syscall(425, 1, ctypes.create_string_buffer(200)))",
    "enter a namespace of its own": "must(libc.unshare(0x10000000))",
    "share memory with others": "must(libc.syscall({shm_call}, 1, 4096, 0o666))",
    "take all memory": "bytearray(64 << 30)",
    "raise its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_code_in_a_model_file_cannot(name: str, home: Path, run: Attack, tmp_path: Path) -> None:
    place = tmp_path / "agent.sock"
    x86 = os.uname().machine == "x86_64"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as agent:
        server.settimeout(0)
        agent.bind(str(place))
        agent.listen()
        agent.settimeout(0)
        code = ATTACKS[name].format(
            home=str(home), parent=os.getpid(), port=server.getsockname()[1], socket=str(place),
            model=str(tmp_path / "model.pt"),
            socket_call=41 if x86 else 198, shm_call=29 if x86 else 194,
        )  # fmt: skip

        with pytest.raises(ExportError, match=r"Permission|not permitted|not allowed|MemoryError|not implemented"):
            run(code)

        for listener in (server, agent):
            with pytest.raises(BlockingIOError):
                listener.accept()
    assert [str(path.relative_to(home)) for path in sorted(home.rglob("*"))] == [".ssh", ".ssh/id_ed25519"]
    assert (home / ".ssh/id_ed25519").read_text() == SECRET
    assert (home / ".ssh/id_ed25519").stat().st_mtime > 0
    assert not (tmp_path / "model.pt").stat().st_mode & stat.S_ISUID
    assert SECRET not in (tmp_path / "answer").read_text()


def test_code_in_a_model_file_sees_no_environment_variable_and_no_open_file(home: Path, run: Attack) -> None:
    answer = run("output.write(repr((dict(os.environ), os.getcwd(), sys.flags.isolated)).encode())").decode()

    assert SECRET not in answer
    assert answer.endswith("'/', 1)")
    with (home / ".ssh/id_ed25519").open() as kept:
        os.set_inheritable(kept.fileno(), True)
        with pytest.raises(ExportError, match="Bad file descriptor"):
            run(f"os.read({kept.fileno()}, 9)")


def test_what_a_model_file_prints_cannot_steer_the_terminal(run: Attack) -> None:
    with pytest.raises(ExportError) as refused:
        run("raise ValueError('\\x1b]0;owned\\x07 \\u202e' + 'x' * 10**6)")

    assert str(refused.value).isprintable()
    assert len(str(refused.value)) <= sandbox.REASON_LENGTH


def test_a_system_that_cannot_confine_reads_no_such_file() -> None:
    code = "from segserve_builder.export import sandbox; sandbox._CREATE_RULESET = 9999; sandbox.confine([], 2**33)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "SandboxMissingError: this system has no landlock (Function not implemented); " in done.stderr
    assert "use a .safetensors file" in done.stderr


@pytest.mark.parametrize("kind", ["OnLoad", "OnCall"])
def test_torchscript_writes_no_file_of_its_user(kind: str, tmp_path: Path) -> None:
    import torch

    from networks import writing

    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(ROOT / "examples/coins/coins.png", images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(getattr(writing, kind)()).save(str(tmp_path / "evil.pt"))

    done = CliRunner().invoke(
        app, ["export", str(tmp_path / "evil.pt"), "-o", str(tmp_path / "out"), "--name", "net", "--images",
              str(images), "--family", "semantic-logits", "--classes", "a,b,c", "--size", "64x64"],
    )  # fmt: skip

    assert isinstance(done.exception, ExportError)
    assert any(words in str(done.exception) for words in ("Operation not permitted", "from_file"))
    assert not Path("/tmp/segserve-pwned").exists()


def test_a_torch_in_the_current_folder_is_not_taken_for_the_real_one(tmp_path: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "w.pt")
    (tmp_path / "torch.py").write_text('open("pwned", "w").write("x"); raise SystemExit(3)')
    code = "from segserve_builder.export.isolated import *; print(sorted(load_weights(Path('w.pt'))))"

    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("['bias', 'weight']\n", "")
    assert not (tmp_path / "pwned").exists()
