"""What the tests must leave as it was: the state of the machine before and after them, and the differences.

    python -m machine_state save FILE       (in `tests/`) before the tests
    python -m machine_state compare FILE    after them; exits with 1 where something differs, a line each

Others use the machine at the same time. So what is looked at is what nobody changes by the way, or what is ours:

- host name, sysctls, iptables (v4 and v6), routes, addresses, links: every change counts, but for links, addresses,
  routes and rules that name a container engine's or a virtual machine's interface. Of sysctls those that are there
  before and after count (a module that was loaded brings its own), and only where they do not move by themselves.
- mounts: those below folders that the tests use.
- cgroups: those that the tests' kubelet makes.
- processes: those that carry a test run's mark (`suite_run`) after that run has ended. It is in the environment of all
  that tests start, also where they go into a session of their own.
- shared memory: regions of this user that no process holds, but for one of a run that goes on.
- files outside the checkout and segserve's cache: in the folder for temporary files, in the home and in system folders,
  by the names that we and the tools of our tests give them. pytest's own folders stay on purpose, as does what package
  managers install. A platform that runs, and is no dead run's, may keep its folder; so may a living Triton.

What a run of the tests that goes on has is not left: folder, processes, memory, the cluster that it started.

It needs neither root nor any tool; what cannot be read is said, and not compared. Processes of other users' are not
looked at.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from segserve_operator.adapters.local.files import STATE_VARIABLE
from segserve_operator.adapters.local.processes import MARK
from segserve_operator.adapters.local.step_environments import orphaned_step_environments
from suite_run import goes_on, held_regions, marked, read_run, recorded

Entries = Mapping[str, str]

_OTHERS_LINKS: Final = re.compile(
    r"\b(veth\w+|docker\w*|br-\w+|virbr\w*|vnet\w+|vmnet\w*|cali\w+|podman\w*|lxc\w+|lxd\w+)"
)
_MOVING: Final = re.compile(
    r"random/|kernel/hostname|dentry-state|inode-nr|inode-state|file-nr|ns_last_pid|pty/nr|conntrack_count|aio-nr"
    r"|quota|sched_domain|perf_event_max_sample_rate|perf_cpu_time_max|/net/(ipv4|ipv6)/(conf|neigh)/(?!all/|default/|lo/)|stat_refresh"
    r"|/net/ipv4/route/flush|/net/ipv6/route/flush|keys/gc_delay|usermodehelper|sysrq_always|/vm/compact|/vm/drop"
)
_TEMPORARY: Final = (
    *("segserve-*", "segtest-*", "dask-*", "torchinductor_*", "pymp-*", "helm*", "mlflow*", "azurite*", "envoy*"),
    *("triton*", "containerd*", "runc*", "kt-*"),
)
_HOME: Final = (
    *(".dask", ".helm", ".kube", ".azurite", ".mlflow", ".triton", ".keras", ".segserve", "segserve*", "mlruns"),
    *("mlflow.db", "dask-*", ".config/dask", ".config/helm", ".config/segserve", ".config/matplotlib"),
    *(".config/ultralytics", ".cache/helm", ".cache/huggingface", ".cache/torch", ".cache/matplotlib", ".cache/dask"),
    *(".cache/mlflow", ".cache/fontconfig", ".local/share/helm", ".local/state/segserve", ".local/share/segserve"),
    *(".aws", ".config/gcloud", ".azure", ".docker", ".sigstore", ".jupyter", ".ipython", ".local/share/jupyter"),
)
_SYSTEM: Final = (
    *("/var/lib/kt*", "/var/lib/cni", "/var/lib/kubelet", "/var/lib/etcd/*", "/etc/cni/net.d/*", "/run/netns/*"),
    *("/run/containerd/*", "/run/flannel", "/var/log/pods", "/var/log/containers", "/usr/sbin/policy-rc.d"),
)
_CLUSTER: Final = Path(os.environ.get("KT_RUN", "/var/lib/kt"))
_MOUNT_POINTS: Final = (Path("/var/lib/cni"), Path("/var/lib/kubelet"))
_KUBELETS: Final = (os.environ.get("KT_CGROUP", "kt"), "kubepods")
_ENDING_S: Final = 10.0
_SHM: Final = Path("/dev/shm")


class UnreadableError(Exception):
    """Something of the machine cannot be read; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class MachineState:
    """What was seen: by kind, what there is by name, with its value. `unread` says why a kind is missing."""

    seen: Mapping[str, Entries]
    unread: Mapping[str, str]


def snapshot(*kinds: str) -> MachineState:
    """Look at the machine as it is now; without `kinds` at all that the module's text names."""
    seen: dict[str, Entries] = {}
    unread: dict[str, str] = {}
    used = _names_of_a_cluster_in_use()
    for kind in kinds or _KINDS:
        try:
            entries = _KINDS[kind]()
            seen[kind] = {name: value for name, value in entries.items() if not any(part in name for part in used)}
        except (UnreadableError, OSError) as error:
            unread[kind] = str(error)
    return MachineState(seen, unread)


def differences(before: MachineState, after: MachineState) -> list[str]:
    """Return what is new, gone or changed, a line each; what was read only once is not compared."""
    found: list[str] = []
    for kind in _KINDS:
        if kind in before.seen and kind in after.seen:
            found += _differences(kind, before.seen[kind], after.seen[kind])
    return found


def _differences(kind: str, before: Entries, after: Entries) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            if kind not in _CHANGES_ALONE:
                yield f"new {kind}: {name} {after[name]}".rstrip()
        elif name not in after:
            if kind not in _CHANGES_ALONE | _MAY_GO:
                yield f"{kind} is gone: {name} {before[name]}".rstrip()
        elif before[name] != after[name]:
            yield f"{kind} has changed: {name} was {before[name]!r}, is {after[name]!r}"


def _settled(before: MachineState) -> tuple[MachineState, list[str]]:
    """Look again and again until nothing differs: what ends, of ours or of others', may take a moment for it."""
    deadline_s = time.monotonic() + _ENDING_S
    while found := differences(before, state := snapshot()):
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.5)
    return state, found


def _host_name() -> Entries:
    return {"name": socket.gethostname()}


def _sysctls() -> Entries:
    # Read twice: what moves by itself is nobody's change.
    first, second = _read_sysctls(), _read_sysctls()
    return {name: value for name, value in first.items() if second.get(name) == value}


def _read_sysctls() -> dict[str, str]:
    found = {}
    for folder, _, names in os.walk("/proc/sys"):
        for path in (f"{folder}/{name}" for name in names):
            if not _MOVING.search(path):
                with contextlib.suppress(OSError):
                    found[path.removeprefix("/proc/sys/")] = Path(path).read_text(errors="replace").strip()
    return found


def _links() -> Entries:
    return {name: "" for name in os.listdir("/sys/class/net") if not _OTHERS_LINKS.match(name)}  # noqa: PTH208


def _addresses() -> Entries:
    kinds = (socket.AF_INET, socket.AF_INET6)
    return {
        f"{address.address} on {link}": ""
        for link, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family in kinds and not _OTHERS_LINKS.match(link)
    }


def _routes() -> Entries:
    found = {}
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        link, target, gateway, _, _, _, metric, mask, *_ = line.split()
        found[f"{_ipv4(target)} mask {_ipv4(mask)} via {_ipv4(gateway)} on {link}"] = f"metric {metric}"
    table = Path("/proc/net/ipv6_route")
    for line in table.read_text().splitlines() if table.exists() else ():
        target, length, _, _, gateway, _, _, _, flags, link = line.split()
        # What a router announced comes and goes by itself, as do caches.
        if not int(flags, 16) & (0x00040000 | 0x01000000 | 0x00400000):
            found[f"{target}/{int(length, 16)} via {gateway} on {link}"] = ""
    return {name: value for name, value in found.items() if not _OTHERS_LINKS.search(name)}


def _ipv4(word: str) -> str:
    return socket.inet_ntoa(bytes.fromhex(word)[::-1])


def _rules(command: str) -> Callable[[], Entries]:
    def read() -> Entries:
        path = shutil.which(command, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if path is None:
            raise UnreadableError(f"{command} is not installed")
        done = subprocess.run([path], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnreadableError(f"{command}: {' '.join(done.stderr.split()) or done.returncode}")
        return {
            line: "" for line in _rule_lines(done.stdout) if not _OTHERS_LINKS.search(line) and "DOCKER" not in line
        }

    return read


def _rule_lines(text: str) -> Iterator[str]:
    """Give each rule and each chain with its policy, after its table's name, without counters."""
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith((":", "-")):
            yield f"{table}: {re.sub(r' *[[][0-9]+:[0-9]+[]]', '', line)}"


def _names_of_a_cluster_in_use() -> tuple[str, ...]:
    """Return what names the parts of the tests' cluster where a run that goes on has started it."""
    with contextlib.suppress(OSError):
        if goes_on((_CLUSTER / "test-run").read_text().strip()):
            link = os.environ.get("KT_LINK", "kt0")
            return (str(_CLUSTER), link, *(f"/{name}" for name in _KUBELETS), *map(str, _MOUNT_POINTS))
    return ()


def _mounts() -> Entries:
    fields = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    own = tuple(str(folder) for folder in _own_folders())
    return {field[1]: field[2] for field in fields if field[1].startswith(own)}


def _own_folders() -> Iterable[Path]:
    cache = Path(os.environ.get("SEGSERVE_CACHE", Path.home() / ".cache/segserve"))
    return (Path(__file__).parents[1], cache, _CLUSTER, *_MOUNT_POINTS, *_temporary_folders())


def _temporary_folders() -> frozenset[Path]:
    given = Path(tempfile.gettempdir()).resolve()
    # Within a run that is its own folder: other runs' are beside it.
    return frozenset({given, given.parent, Path("/tmp")} if _is_of_a_run(given) else {given, Path("/tmp")})


def _cgroups() -> Entries:
    root = Path("/sys/fs/cgroup")
    if not root.is_dir():
        raise UnreadableError(f"there is no {root}")
    found = (path for name in _KUBELETS for pattern in (name, f"*/{name}") for path in root.glob(pattern))
    return {str(path): "" for path in found if path.is_dir()}


def _processes() -> Entries:
    found = {}
    for process in _leftovers():
        with contextlib.suppress(psutil.Error):
            found[str(process.pid)] = " ".join(process.cmdline())[:200]
    return found


def _leftovers() -> list[psutil.Process]:
    marks = {process: marked(process) for process in psutil.process_iter() if process.pid != os.getpid()}
    ended = {mark for mark in set(marks.values()) if mark is not None and not goes_on(mark)}
    return [process for process, mark in marks.items() if mark in ended and _runs(process)]


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _shared_memory() -> Entries:
    listed = list(_ours(_SHM.iterdir()))
    # After the listing: a process that made one has it by now, and a run that had begun has its record.
    held = held_regions()
    alive = [run.name for folder in _temporary_folders() for run in recorded(folder) if run.is_alive]
    left = [path for path in listed if path not in held and not any(f"-{run}-" in path.name for run in alive)]
    return {path.name: "" for path in left if path.exists()}


def _temporary_files() -> Entries:
    listed = [path for folder in _temporary_folders() for name in _TEMPORARY for path in _ours(folder.glob(name))]
    # After the listing, as above.
    used = {part for folder in _folders_of_platforms() for part in Path(folder).parts}
    left = [path for path in listed if path.name not in used and not _is_of_a_run(path) and os.path.lexists(path)]
    return {str(path): "" for path in (*left, *orphaned_step_environments())}


def _is_of_a_run(path: Path) -> bool:
    run = read_run(path.with_suffix(".json"))
    return run is not None and run.is_alive


def _folders_of_platforms() -> list[str]:
    left = {process.pid for process in _leftovers()}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in left:
                environment = process.environ()
                found += [environment.get(MARK, ""), environment.get(STATE_VARIABLE, "")]
    return found


def _files() -> Entries:
    home = [path for pattern in _HOME for path in Path.home().glob(pattern)]
    system = [path for pattern in _SYSTEM for path in Path("/").glob(pattern[1:])]
    return {str(path): "" for path in (*home, *system)}


def _ours(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.geteuid():
                yield path


_KINDS: Final[Mapping[str, Callable[[], Entries]]] = {
    "host name": _host_name,
    "sysctl": _sysctls,
    "link": _links,
    "address": _addresses,
    "route": _routes,
    "rule of iptables": _rules("iptables-save"),
    "rule of ip6tables": _rules("ip6tables-save"),
    "mount": _mounts,
    "cgroup": _cgroups,
    "process": _processes,
    "shared memory": _shared_memory,
    "temporary file": _temporary_files,
    "file": _files,
}
_CHANGES_ALONE: Final = frozenset({"sysctl"})
_MAY_GO: Final = frozenset({"process", "shared memory", "temporary file", "mount", "cgroup"})


def main(arguments: Sequence[str]) -> int:
    """Save the machine's state, or compare with what was saved."""
    match arguments:
        case ["save", file]:
            state = snapshot()
            Path(file).write_text(json.dumps(asdict(state)))
        case ["compare", file]:
            before = MachineState(**json.loads(Path(file).read_text()))
            state, found = _settled(before)
            for line in found:
                print(line)
            print(f"{len(found)} differences" if found else "the machine is as it was")
        case _:
            print("usage: python -m machine_state save FILE | compare FILE", file=sys.stderr)
            return 2
    for kind, reason in state.unread.items():
        print(f"not compared: {kind}: {reason}", file=sys.stderr)
    return int(arguments[0] == "compare" and bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
