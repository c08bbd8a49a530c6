"""The real cluster of this folder's scripts: its start, its end, and what goes wrong in it on purpose."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cluster.make_image import Image, write_archive

_SCRIPTS: Final = Path(__file__).parent
_CGROUPS: Final = Path("/sys/fs/cgroup")
KUBELET: Final = "kubelet"
API_SERVER: Final = "kube-apiserver"
SECOND: Final = "segserve.dev/second-node"
"""The taint of a second node: pods that do not tolerate it stay away."""


class ClusterError(Exception):
    """A script of the cluster failed; the text ends with what it printed."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a container: its id as the node knows it, and its words."""

    pid: int
    command: str


def unfit() -> str:
    """Return why this machine cannot run the cluster; empty where it can."""
    if os.geteuid() != 0:
        return "the cluster's node needs root"
    if not all((_CGROUPS / name).is_dir() for name in ("memory", "cpu")):
        return f"the cluster's kubelet needs the cgroup v1 hierarchies below {_CGROUPS}"
    if not Path("/etc/debian_version").exists():
        return "the cluster is built from Debian's packages"
    return ""


@dataclass(frozen=True, slots=True)
class Node:
    """A node with its state in `state`; `settings` are what its scripts are told beyond their defaults."""

    state: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's way in."""
        return self.state / "admin.conf"

    @property
    def kubectl(self) -> str:
        """The path of a kubectl of its version."""
        return self._shell('echo "$KT_BIN/kubectl"').stdout.strip()

    @property
    def is_up(self) -> bool:
        """Whether it runs already, started by somebody else."""
        return self._shell(f'alive && [ -e "{self.state}/ready" ]', check=False).returncode == 0

    def start(self) -> None:
        """Build what is missing (minutes, once) and start the cluster (seconds); `ClusterError` where that fails."""
        _run("build.sh")
        _run("up.sh", **self.settings)

    def stop(self) -> None:
        """End the cluster and all that is in it."""
        _run("down.sh", **self.settings)

    def second(self) -> Node:
        """Return the settings of a second node of this cluster; `start` makes it join."""
        settings = {
            "KT_JOIN": str(self.state),
            "KT_RUN": str(self.state / "second"),
            "KT_NODE": "kt-second",
            "KT_TAINTS": f"{SECOND}=:NoSchedule",
            "KT_CGROUP": "kt-second",
            "KT_LINK": "kt-second",
            "KT_API_IP": self._shell('echo "$KT_NODE_IP"').stdout.strip(),
            "KT_FIRST": self._shell('echo "$KT_HOST_IP $KT_NODE_IP $KT_POD_CIDR"').stdout.strip(),
            "KT_HOST_IP": "172.31.241.1",
            "KT_NODE_IP": "172.31.241.2",
            "KT_POD_CIDR": "10.244.1.0/24",
            "KT_POD_GATEWAY": "10.244.1.1",
        }
        return Node(self.state / "second", settings)

    def lose(self) -> None:
        """End a second node at once as a power failure does: nobody says goodbye, and packets to it get no answer."""
        self._shell("""
            first ip route replace blackhole "$KT_POD_CIDR"
            first ip link set "$KT_LINK" down  # before its processes end, whose connections would be reset
            kill -KILL "$(cat "$KT_RUN/node.pid")"
        """)

    def load(self, images: Sequence[Image]) -> None:
        """Make images known to the node; layers that it has already are left out."""
        known = frozenset(self._shell("ctr_ content ls -q").stdout.split())
        try:
            self._load(images, known)
        except ClusterError:
            # What was known may have been collected meanwhile, as part of an image whose tag went to a newer one.
            self._load(images, frozenset())

    def _load(self, images: Sequence[Image], known: frozenset[str]) -> None:
        command = ["bash", "-c", f'. "{_SCRIPTS}/env.sh"; ctr_ images import -']
        environment = {**os.environ, **self.settings}
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as ctr:
            assert ctr.stdin is not None
            assert ctr.stdout is not None
            write_archive(ctr.stdin, images, known)
            ctr.stdin.close()
            said = ctr.stdout.read().decode()
        if ctr.returncode:
            raise ClusterError(f"images could not be imported: {said}")

    def processes(self, container_id: str) -> list[Process]:
        """Return the processes of a container, by its id without the `containerd://`."""
        script = f"""
            for pid in $(ctr_ tasks ps {shlex.quote(container_id)} | awk 'NR > 1 {{print $1}}'); do
              node sh -c 'printf "%s " "$1"; tr "\\0\\n" "  " </proc/$1/cmdline; echo' - "$pid"
            done"""
        words = [line.split(None, 1) for line in self._shell(script).stdout.splitlines()]
        return [Process(int(word[0]), word[1] if word[1:] else "") for word in words]

    def kill(self, pid: int, signal: str = "KILL") -> None:
        """Send a signal to a process by its id on the node; one that is gone is left alone."""
        self._shell(f"node kill -{signal} {pid}", check=False)

    def run(self, script: str) -> None:
        """Run a shell script as root on the node; `ClusterError` where it fails."""
        self._shell(f"node sh -c {shlex.quote(script)}")

    def exhaust_memory(self, pid: int) -> None:
        """Leave the container of a process no more memory than it uses, and ask for more: the kernel kills its largest.

        `ClusterError` where the kernel has killed nothing. The limit is then as before, for what starts again in it.
        """
        self._shell(f"""
            node sh -c '
              at=/sys/fs/cgroup/memory$(sed -n "s/^[0-9]*:memory://p" /proc/$1/cgroup)
              kills() {{ sed -n "s/^oom_kill //p" $at/memory.oom_control; }}
              before=$(kills) limit=$(cat $at/memory.limit_in_bytes)
              block=$(head -c 1048576 /dev/zero | tr "\\0" x)
              (
                read -r own others </proc/self/stat
                # Not this shell, which is as large as some containers by then, while a process of theirs is dying.
                echo -1000 >/proc/self/oom_score_adj
                echo $own >$at/cgroup.procs
                for more in 0 1 2 4 8 16; do
                  echo 0 2>/dev/null >$at/memory.force_empty  # caches would go first
                  least=$(($(cat $at/memory.usage_in_bytes) + more * 1048576))
                  echo $least 2>/dev/null >$at/memory.limit_in_bytes && break
                done
                for each in $(seq 256); do
                  [ "$(kills)" = $before ] || break
                  held=$held$block
                done
              )
              after=$(kills)
              echo $limit 2>/dev/null >$at/memory.limit_in_bytes
              [ "$after" != $before ]' - {pid}
        """)

    def signal(self, component: str, signal: str) -> None:
        """Send a signal to a component of the cluster (`KUBELET`, `API_SERVER`, ...)."""
        self._shell(f"send {signal} {component}")

    def restart(self, component: str) -> None:
        """Start a component again that was killed."""
        self._shell(f"restart {component}")

    def log(self, component: str, lines: int = 50) -> str:
        """Return the last lines that a component logged."""
        path = self.state / "log" / f"{component}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def _shell(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        whole = f'. "{_SCRIPTS}/env.sh"; {script}'
        environment = {**os.environ, **self.settings}
        done = subprocess.run(
            ["bash", "-c", whole],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise ClusterError(f"{script.strip()} ended with {done.returncode}: {done.stderr.strip()}")
        return done


@dataclass(frozen=True, slots=True)
class CrdServer:
    """A current API server for custom resources, beside a node's cluster; `kubeconfig` is the way in."""

    kubeconfig: Path

    def stop(self) -> None:
        """End it."""
        _run("crd-server.sh", "stop")


def default_node() -> Node:
    """Return the node that the scripts' settings describe."""
    return Node(Path(os.environ.get("KT_RUN", "/var/lib/kt")))


def build() -> None:
    """Build what is missing of the cluster and its server of custom resources: minutes, once."""
    _run("build.sh")
    _run("crd-server.sh", "build")


def start_crd_server(node: Node) -> CrdServer:
    """Build (minutes, once) and start a current server for custom resources; the node has to be up."""
    _run("crd-server.sh", "build")
    _run("crd-server.sh", "start")
    return CrdServer(node.state / "crd-server/crd.conf")


def _run(script: str, *arguments: str, **settings: str) -> None:
    # Not a pipe: what the script starts goes on and would keep it open.
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            [_SCRIPTS / script, *arguments],
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        said.seek(0)
        tail = "\n".join(said.read().decode(errors="replace").splitlines()[-20:])
    if done.returncode:
        raise ClusterError(f"{script} {' '.join(arguments)} ended with {done.returncode}:\n{tail}")
