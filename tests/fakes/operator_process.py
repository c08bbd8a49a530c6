"""The operator as a process of this machine, which a test may kill, pause and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench.ports import free_port
from fakes.cluster import ImageNames
from fakes.waiting import HANG_S

TRITON_VERSION = "24.10"
"""The release that the tests' embedded Triton comes closest to."""


@dataclass
class OperatorProcess:
    """`python -m segserve_operator` for some namespaces; what it says is added to `log`.

    The first namespace holds its Lease. `name` is who it is in the election: one that is started again keeps it. Its
    clock is ahead by the seconds in the file `clock`, if there is one.
    """

    kubeconfig: Path
    namespaces: tuple[str, ...]
    images: ImageNames
    log: Path
    name: str = "operator"
    clock: Path | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _port: int = field(default_factory=free_port, init=False)

    def start(self) -> Self:
        """Start it; it works some seconds later."""
        with self.log.open("ab") as said:
            module = ["segserve_operator"] if self.clock is None else ["faults.stepped_operator", str(self.clock)]
            command = [sys.executable, "-m", *module]
            self._process = subprocess.Popen(
                command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        return self

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def passes(self) -> int:
        """Return how many passes it has made since it started; none while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=HANG_S) as answer:
                text = answer.read().decode()
        except OSError:
            return 0
        lines = [line for line in text.splitlines() if line.startswith("segserve_reconcile_passes_total{")]
        return sum(int(float(line.rpartition(" ")[2])) for line in lines)

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it at once, without a chance to say a word."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as Kubernetes does; one that is paused goes on first."""
        self.send(signal.SIGCONT)
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Run it for the time of the block."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def tail(self, lines: int = 60) -> str:
        """Return the end of what it said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self.send(number)
        try:
            self._process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _environment(self) -> dict[str, str]:
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("SEGSERVE_")}
        return inherited | {
            # Where the module is that sets its clock.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "KUBECONFIG": str(self.kubeconfig),
            "POD_NAME": self.name,
            "SEGSERVE_NAMESPACES": ",".join(self.namespaces),
            "SEGSERVE_LEASE_NAMESPACE": self.namespaces[0],
            "SEGSERVE_SERVER_IMAGE": self.images.server,
            "SEGSERVE_OPERATOR_IMAGE": self.images.operator,
            "SEGSERVE_ENVOY_IMAGE": self.images.envoy,
            "SEGSERVE_TRITON_VERSION": TRITON_VERSION,
            "SEGSERVE_HEALTH_PORT": str(self._port),
        }
