"""A node of the tests' cluster, and what goes wrong in it on purpose."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
_MINOR: Final = os.environ.get("SEGSERVE_TEST_KUBERNETES")
_GO_MOD: Final = HERE / (f"go-{_MINOR}.mod" if _MINOR else "go.mod")
VERSION: Final = next(
    line.split()[1] for line in _GO_MOD.read_text().splitlines() if line.startswith("\tk8s.io/kubernetes v")
)
"""Of Kubernetes."""
CACHE: Final = Path(
    os.environ.get("KIND_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", f"segserve/kind-{VERSION}")
)
"""What `settings.sh` calls so: programs, images, and the state of clusters."""
NAME: Final = os.environ.get("KIND_NAME", "segserve")
"""The cluster's, with which its nodes' names begin."""
_NETWORK: Final = "kind"


class ClusterError(Exception):
    """A command of the cluster failed; the text ends with what it printed."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a container: its id as the node knows it, and its command line."""

    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node, which is a container of Docker's with this name."""

    name: str

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return docker("inspect", "--format", "{{.State.Running}}", self.name, check=False).strip() == "true"

    def load(self, images: Sequence[str]) -> None:
        """Make images of Docker's known to the node; one that it has already is left out."""
        _run("kind", "load", "docker-image", "--quiet", "--name", NAME, "--nodes", self.name, *images)

    def processes(self, container_id: str) -> list[Process]:
        """Return the processes of a container, by its id without the `containerd://`."""
        script = f"""
            for pid in $(ctr -n k8s.io tasks ps {shlex.quote(container_id)} | awk 'NR > 1 {{ print $1 }}'); do
              printf "%s " "$pid"; tr "\\0\\n" "  " </proc/$pid/cmdline; echo
            done"""
        words = [line.split(None, 1) for line in self.run(script).splitlines()]
        return [Process(int(word[0]), word[1] if word[1:] else "") for word in words]

    def kill(self, pid: int, signal: str = "KILL") -> None:
        """Send a signal to a process by its id on the node; one that is gone is left alone."""
        docker("exec", self.name, "kill", f"-{signal}", str(pid), check=False)

    def run(self, script: str) -> str:
        """Run a shell script as root on the node, and return what it printed; `ClusterError` where it fails."""
        return docker("exec", self.name, "sh", "-c", script)

    def destinations(self) -> set[str]:
        """Return the addresses that this node sends callers of Services to."""
        rules = self.run("iptables-save -t nat | sed -n 's/.* -j DNAT --to-destination //p'")
        return {rule.rpartition(":")[0] for rule in rules.splitlines()}

    def forget_connections(self, address: str) -> None:
        """Forget which connections to Services went to an address.

        For two minutes conntrack sends one from the same port to the same address, also where a Service has left it.
        Linux has a new place from which it gives out ports every ten seconds, so a port may come again at once.
        """
        self.run(f"conntrack -D --reply-src {address} || [ $? = 1 ]  # there were none")

    def exhaust_memory(self, pid: int) -> None:
        """Leave the container of a process no more memory than it uses, and ask for more: the kernel kills its largest.

        `ClusterError` where the kernel has killed nothing. The limit is then as before, for what starts again in it.
        The machine has to have the cgroup v1 hierarchies.
        """
        self.run(f"""
            at=/sys/fs/cgroup/memory$(sed -n "s/^[0-9]*:memory://p" /proc/{pid}/cgroup)
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
            [ "$after" != $before ]
        """)

    def lose(self) -> None:
        """End the node at once as a power failure does: nobody says goodbye, and packets to it get no answer."""
        # Before its processes end, whose connections would be reset.
        docker("network", "disconnect", "--force", _NETWORK, self.name)
        docker("kill", self.name)

    def recover(self) -> None:
        """Start the node again, if it was lost; it is ready some seconds later."""
        if self.is_up:
            return
        docker("network", "connect", _NETWORK, self.name)
        docker("start", self.name)
        run_script("network.sh")


def docker(*arguments: str, check: bool = True) -> str:
    """Run a command of Docker's, and return what it printed; `ClusterError` where it fails."""
    return _run("docker", *arguments, check=check)


def environment() -> dict[str, str]:
    """Return the environment in which `docker` reaches the daemon that `settings.sh` chooses, and `kind` is found."""
    socket = CACHE / "docker/docker.sock"
    return {
        **({"DOCKER_HOST": f"unix://{socket}"} if socket.is_socket() else {}),
        **os.environ,
        "DOCKER_BUILDKIT": "1",
        "PATH": f"{CACHE / 'bin'}:{os.environ['PATH']}",
    }


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(
        command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise ClusterError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def run_script(script: str, *arguments: str) -> None:
    """Run a script of this folder; `ClusterError` with the end of what it printed where it fails."""
    # Not a pipe: what the script starts goes on and would keep it open.
    with tempfile.TemporaryFile() as said:
        done = subprocess.run([HERE / script, *arguments], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        said.seek(0)
        tail = "\n".join(said.read().decode(errors="replace").splitlines()[-20:])
    if done.returncode:
        raise ClusterError(f"{script} {' '.join(arguments)} ended with {done.returncode}:\n{tail}")
