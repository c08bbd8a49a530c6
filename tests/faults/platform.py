"""A local platform whose servers misbehave on command, and whose supervisor can be killed and started again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from bench.platform import Running
from bench.ports import free_port
from fakes.waiting import until
from fakes.watching import Watched
from faults.plan import VARIABLE, Plan
from faults.supervisor import CLOCK_STEP
from segserve_common.files import write_private
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder, cache_folder, read_platform
from segserve_operator.adapters.local.runtime import ensure_runtime
from segserve_operator.core.world.observed import Wanted
from segserve_operator.mapping.specs import wanted_of

TIMEOUT_S: Final = 5
"""A request that is not answered by then fails: what hangs is known by that."""
PATIENT_S: Final = 60
"""Where nothing hangs, only the machine is busy."""

Json = dict[str, Any]


@dataclass(frozen=True)
class FaultyPlatform:
    """A running platform, the plan of its faults, and what can happen to its own processes."""

    running: Running
    plan: Plan
    speed: float = 1.0

    @property
    def watched(self) -> Watched:
        """What its files and processes show."""
        return Watched(self.running)

    def apply(self, *manifests: Json) -> None:
        """Apply models and pools as a user does."""
        path = self.running.state / "applied.yaml"
        path.write_text(yaml.safe_dump_all(manifests))
        self.running.segserve("apply", "-f", str(path))

    def rollout(self, model: str) -> Json:
        """Return the status's word of the model's rollout, empty where it has none."""
        found: Json = (self.watched.manifest(model).get("status") or {}).get("rollout") or {}
        return found

    def start_supervisor(self) -> None:
        """Start the supervisor and return once it has looked at everything."""
        launch(self.running.state, self.plan, self.speed)

    def kill_supervisor(self) -> None:
        """Kill it; servers and gateway run on."""
        found = self.watched.supervisor()
        found.kill()
        until(lambda: read_platform(self.watched.state) is None, "the supervisor is gone")

    def step_clock(self, seconds: float) -> None:
        """Set the supervisor's clock ahead, or back."""
        write_private(self.running.state / CLOCK_STEP, str(seconds))

    @contextmanager
    def no_samples(self) -> Iterator[None]:
        """Hide the gateway's admin socket for the time of the block: it serves on, and says nothing."""
        sockets = [path for path in (self.running.state / "gateway").iterdir() if path.is_socket()]
        assert sockets, "Envoy has no admin socket"
        for path in sockets:
            path.rename(path.with_suffix(".hidden"))
        try:
            yield
        finally:
            for path in sockets:
                path.with_suffix(".hidden").rename(path)


def revision_of(manifest: Json) -> str:
    """Return the name of the revision that a model's manifest asks for."""
    found = wanted_of(manifest, {})
    assert isinstance(found, Wanted), found
    return found.assigned.revision


@contextmanager
def faulty_platform(*models: Json, timeout_s: int, speed: float = 1.0) -> Iterator[FaultyPlatform]:
    """Serve models for the time of the block, on a platform with a state folder and a port of its own.

    Its decisions are made by a clock that is `speed` times as fast.
    """
    # Not below a test's own folder: the path of Envoy's admin socket must stay short.
    state, port = Path(tempfile.mkdtemp(prefix="segserve-")), free_port()
    found = FaultyPlatform(Running(f"http://127.0.0.1:{port}", state), Plan(state / "faults.json"), speed)
    try:
        gateway = {"port": port, "requestTimeoutSeconds": timeout_s}
        pool = {"apiVersion": "segserve.dev/v1alpha1", "kind": "TritonPool", "metadata": {"name": "default"}}
        found.apply(pool | {"spec": {"gateway": gateway}}, *models)
        found.start_supervisor()
        for model in models:
            found.running.segserve("wait", model["metadata"]["name"], "--for=Ready")
        yield found
    finally:
        found.running.segserve("down")
        shutil.rmtree(state, ignore_errors=True)


def launch(state: Path, plan: Plan, speed: float = 1.0) -> None:
    """Start the supervisor of a state folder whose servers follow a plan; return once it has looked at everything."""
    # Not by the supervisor: pip would take the packages of its PYTHONPATH for installed ones.
    ensure_runtime(cache_folder())
    ours = {VARIABLE: str(plan.path), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (state / "segserve.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "faults.supervisor", str(state), str(state / "code"), str(speed)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=processes.marked_environment(os.environ | ours, state),
        )
    # Its end is seen by polling: it is killed by its id as often as it ends by itself.
    child.returncode = 0

    def looked() -> bool:
        record = read_platform(StateFolder(state))
        return record is not None and record.observed

    until(looked, f"the supervisor looked at everything; see {state / 'segserve.log'}")
