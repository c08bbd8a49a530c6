"""A cluster in memory that is watched: what Prometheus scrapes of it, which alerts fire, and commands that reach it."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias
from unittest import mock

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from cluster.kind import KUBECTL
from fakes.cluster_world import KEY, ClusterWorld
from fakes.kube_faults import Faulty
from fakes.waiting import HANG_S
from segserve_common.api_errors import ApiError
from segserve_common.kube.kinds import PODS
from segserve_operator.adapters.kube.view import PoolKey
from segserve_operator.worker import Worker
from segserve_platform.cli.app import main
from tools import ROOT

Target: TypeAlias = tuple[Iterable[Sample], dict[str, str]]
"""What a pod shows to Prometheus, and its labels there."""
OPERATOR: Final = "operator-0"
RULES: Final = ROOT / "charts/segserve/files/alerts.yaml"
_UNIX_TIMES: Final = "_expires_seconds"


def samples_of(families: Iterable[Metric]) -> Iterator[Sample]:
    """Yield the samples of metrics."""
    return (sample for family in families for sample in family.samples)


@dataclass
class Scrapes:
    """The series of a Prometheus, a value at each interval."""

    every_s: int = 30
    values: dict[str, list[str]] = field(default_factory=dict)
    count: int = 0

    def add(self, scraped: Iterable[Target], began_s: float) -> None:
        """Add the metrics of targets, each with its labels."""
        now = {}
        for samples, target in scraped:
            for sample in samples:
                labels = ",".join(f"{key}={json.dumps(value)}" for key, value in {**target, **sample.labels}.items())
                # promtool's time begins with zero.
                shift_s = began_s if sample.name.endswith(_UNIX_TIMES) and sample.value else 0.0
                now[f"{sample.name}{{{labels}}}"] = repr(float(sample.value) - shift_s)
        for series in now.keys() - self.values.keys():
            self.values[series] = ["_"] * self.count
        for series, values in self.values.items():
            values.append(now.get(series) or ("_" if values[-1] in ("_", "stale") else "stale"))
        self.count += 1

    def check(self, expected: Iterable[tuple[int, str, bool]], file: Path) -> None:
        """Assert which alerts fire at which scrapes, by Prometheus' own test program."""
        tests = [
            {
                "expr": f'group(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                "eval_time": f"{at * self.every_s}s",
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }
            for at, alert, fires in expected
        ]
        inputs = [{"series": series, "values": " ".join(values)} for series, values in self.values.items()]
        interval = f"{self.every_s}s"
        test = {"interval": interval, "input_series": inputs, "promql_expr_test": tests}
        file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": interval, "tests": [test]}))
        command = ["promtool", "test", "rules", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@dataclass
class MonitoredWorld(ClusterWorld):
    """A world whose operator is a pod with metrics and a log; all metrics are scraped as time passes."""

    scrapes: Scrapes = field(default_factory=Scrapes)
    lines: list[str] = field(default_factory=list)
    """The operator's log."""
    others: list[Callable[[], Target]] = field(default_factory=list)
    """What else is scraped."""
    is_down: bool = False
    """Whether no operator runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.began_s = self.now_s
        self.api = self.faults = Faulty(self.kube, clock=lambda: self.now_s)
        self.start()

    def start(self) -> None:
        """Begin with a new operator, whose API a test may make fail."""
        self.restart()
        self.is_down = False
        metadata = {"name": OPERATOR, "namespace": "vision", "labels": {"app.kubernetes.io/component": "operator"}}
        spec = {"containers": [{"name": "operator"}]}
        self.kube.put(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def restart(self) -> None:
        super().restart()
        self.worker = Worker(self.passes.reconcile, lambda _: True, lambda: True, self.metrics)

    async def run_pass(self, key: PoolKey = KEY) -> int:
        if self.is_down:
            return 0
        await self.look()
        outcome = await self.worker._attempt(key)
        if isinstance(outcome, Exception) and not isinstance(outcome, ApiError):
            raise outcome
        return -1 if isinstance(outcome, Exception) else outcome.writes

    async def turns(self, count: int = 10, *, seconds_each: float = 1.0) -> None:
        for _ in range(count):
            await super().turns(1, seconds_each=seconds_each)
            while self.began_s + self.scrapes.count * self.scrapes.every_s <= self.now_s:
                self.scrapes.add(self.targets(), self.began_s)

    async def minutes(self, count: int) -> None:
        """Let time pass."""
        await self.turns(count * 60 // self.scrapes.every_s, seconds_each=self.scrapes.every_s)

    def targets(self) -> Iterator[Target]:
        """Yield what each pod shows."""
        for other in self.others:
            yield other()
        if self.is_down:
            return
        self.metrics.resources.leader.set(1)
        self.metrics.observe(self.view)
        failures = {(key.namespace, key.pool): each for key, each in self.passes.failures().items()}
        self.metrics.resources.observe_failures(failures)
        yield samples_of(self.metrics.registry.collect()), {"pod": OPERATOR}

    def logs(self, pod: str, container: str) -> str:
        """Return the log of a container."""
        del container
        return "\n".join(self.lines if pod == OPERATOR else ())

    async def run(self, command: str, kubeconfig: Path) -> str:
        """Run a command of `segserve` or `kubectl`, and return all that it prints; the world goes on meanwhile."""
        if command.startswith("segserve "):
            running = asyncio.create_task(asyncio.to_thread(_segserve, shlex.split(command), kubeconfig.parent))
        else:
            running = asyncio.create_task(asyncio.to_thread(_shell, command, kubeconfig))
        async with asyncio.timeout(HANG_S):
            while not running.done():
                await self.turns(1, seconds_each=0.0)
                await asyncio.wait([running], timeout=0.05)
        return running.result()


def _segserve(words: list[str], folder: Path) -> str:
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", words),
        redirect_stdout(printed),
        redirect_stderr(printed),
        chdir(folder),  # some write a file where they are
        suppress(SystemExit),
    ):
        main()
    return printed.getvalue()


def _shell(command: str, kubeconfig: Path) -> str:
    environment = {
        "PATH": f"{KUBECTL.parent}:/usr/bin:/bin",
        "KUBECONFIG": str(kubeconfig),
        "HOME": str(kubeconfig.parent),
    }
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=kubeconfig.parent,
        timeout=HANG_S,
    )
    return done.stdout + done.stderr
