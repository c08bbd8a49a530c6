"""Hours of load on a cluster while everything around it changes: no request fails, and nothing grows.

    PYTHONPATH=tests python -m bench.operator_soak [SECONDS] [SEED]

Runs on the tests' cluster, two hours by default. At random: edits of the model, rollouts, scaling, an operator, an
agent, a step of Triton or an Envoy killed, a server or gateway deleted. Writes bench/out/operator_soak.json and its
table in bench/out/reliability.md; fails where a request failed that nothing excuses, or where something grew.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from scipy import stats

from bench.operator_faults import DOCUMENT
from bench.smoke import output, sized
from fakes.cluster import running_cluster
from fakes.cluster_load import Load, Strike, strike
from fakes.cluster_pool import ClusterPool, coins_manifest, name_of, pool_manifest
from fakes.operator_process import OperatorProcess

OUT: Final = output("bench/out/operator_soak.json")
SECONDS: Final = sized(7200.0, 60.0)
WHOLE_S: Final = 240.0
NOBODY_LISTENS: Final = ("refused", "reset by peer", "Socket closed", "disconnected", "Broken pipe")
"""What callers without retries may meet at an Envoy that was killed, until it is back."""
GROWTH: Final = {"operator_mib": 20.0, "reports_kib": 8.0, "objects_kib": 256.0, "etcd_mib": 200.0}
"""Growth in an hour that counts as none; etcd keeps the history of five minutes, which is compacted, not freed."""
Json = dict[str, Any]


@dataclass
class Soak:
    """A pool under load, what has befallen it, and samples of what must not grow."""

    pool: ClusterPool
    operator: OperatorProcess
    random: random.Random
    load: Load
    servers: int = 2
    gateways: int = 2
    area: int = 150
    events: Counter[str] = field(default_factory=Counter)
    strikes: list[Strike] = field(default_factory=list)
    samples: list[Json] = field(default_factory=list)

    def edit(self) -> None:
        """Apply another revision, which takes all requests once it is proved."""
        self.area = 150 + (self.area - 149) % 3
        self.pool.apply(coins_manifest(min_area=self.area, keepPrevious="10s"))

    def roll_out(self) -> None:
        """Apply another revision with a rollout by evidence, and taken back by the next edit where it is slow."""
        self.area = 150 + (self.area - 149) % 3
        policy = {"steps": [{"weight": 20}, {"weight": 50}], "bakeTime": "10s", "gates": [{"gate": "errorRate"}]}
        self.pool.apply(coins_manifest(min_area=self.area, keepPrevious="10s", rollout=policy))

    def scale(self) -> None:
        """Run another number of servers."""
        self.servers = 5 - self.servers
        self.pool.apply(pool_manifest(replicas=self.servers))

    def kill_operator(self) -> None:
        """Kill the operator and start it again."""
        self.operator.restart()

    def kill_agent(self) -> None:
        """Kill an agent."""
        self._kill("server", "agent", "cluster.agent")

    def kill_step(self) -> None:
        """Kill a step of Triton."""
        self._kill("server", "triton", "triton_python_backend_stub")

    def kill_envoy(self) -> None:
        """Kill an Envoy."""
        self._kill("gateway", "envoy", "envoy --config-path")

    def delete_server(self) -> None:
        """Delete a server's pod."""
        self.pool.delete("pod", name_of(self.random.choice(self.pool.servers())))

    def delete_gateway(self) -> None:
        """Delete a gateway's pod."""
        self.pool.delete("pod", name_of(self.random.choice(self.pool.gateways())))

    def turn(self) -> None:
        """Let something happen, and wait until everything is whole again."""
        events: Sequence[Callable[[], None]] = (
            self.edit,
            self.edit,
            self.roll_out,
            self.scale,
            self.kill_operator,
            self.kill_agent,
            self.kill_step,
            self.kill_envoy,
            self.delete_server,
            self.delete_gateway,
        )
        event = self.random.choice(events)
        with strike() as struck:
            event()
            if event in (self.kill_envoy, self.kill_step):
                self.pool.wait("whole", self._is_whole, WHOLE_S)
        if event in (self.kill_envoy, self.kill_step):
            self.strikes.append(struck())
        self.events[event.__name__.replace("_", " ")] += 1
        self.pool.wait("whole", self._is_whole, WHOLE_S)
        self.load.answers_go_on()

    def sample(self, second: float) -> None:
        """Measure what must not grow."""
        maps = self.pool.cluster.get(self.pool.namespace, "configmaps")
        rollouts = self.pool.cluster.get(self.pool.namespace, "segmentationrollouts")
        metrics = self.pool.cluster.kubectl("get", "--raw", "/metrics")
        etcd = re.search(r"^(?:etcd_db|apiserver_storage_db)_total_size_in_bytes\S* (\S+)$", metrics, re.MULTILINE)
        self.samples.append(
            {
                "second": round(second),
                "operator_pid": self.operator.pid,
                "operator_mib": psutil.Process(self.operator.pid).memory_info().rss / 2**20,
                "reports_kib": sum(len(json.dumps(each)) for each in maps if "report" in name_of(each)) / 1024,
                "objects_kib": sum(len(json.dumps(each)) for each in (*maps, *rollouts)) / 1024,
                "etcd_mib": float(etcd[1]) / 2**20 if etcd else 0.0,
            }
        )

    def _is_whole(self) -> bool:
        return self.pool.is_whole(self.servers, self.gateways)

    def _kill(self, component: str, container: str, command: str) -> None:
        # One that was killed a moment ago may not be back: its pod is ready until its next probe.
        pod = name_of(self.random.choice(self.pool.pods(component)))
        kill = partial(self.pool.cluster.kill, self.pool.namespace, pod, container, running=command)
        self.pool.wait(f"{command} of {pod} is killed", lambda: bool(kill()), WHOLE_S)


def growth(samples: Sequence[Json], name: str) -> Json:
    """Return the slope per hour with its 95 % interval, from the second half of a run, after the warm-up.

    Of the operator's memory: of the process that lived longest, since a new one begins small.
    """
    half = samples[len(samples) // 2 :]
    if name == "operator_mib":
        pid, _ = Counter(each["operator_pid"] for each in samples).most_common(1)[0]
        lived = [each for each in samples if each["operator_pid"] == pid]
        half = lived[len(lived) // 4 :]
    hours, sizes = [each["second"] / 3600 for each in half], [each[name] for each in half]
    if len(half) < 3:
        return {"slope": 0.0, "low": 0.0, "high": 0.0, "first": sizes[0], "last": sizes[-1]}
    line = stats.linregress(hours, sizes)
    reach = float(stats.t.ppf(0.975, len(half) - 2)) * line.stderr
    ends = {"first": round(sizes[0], 1), "last": round(sizes[-1], 1)}
    rounded = {"slope": line.slope, "low": line.slope - reach, "high": line.slope + reach}
    return {key: round(float(value), 2) for key, value in rounded.items()} | ends


def soak(seconds: float, seed: int, folder: Path) -> Json:
    """Run it, and return what was seen."""
    with running_cluster() as cluster, cluster.namespace("soak") as namespace:
        operator = OperatorProcess(cluster.kubeconfig, (namespace,), cluster.images, folder / "operator.log")
        pool = ClusterPool(cluster, namespace, operator.tail)
        with operator.running():
            pool.apply(pool_manifest(replicas=2), coins_manifest(keepPrevious="10s"))
            pool.wait("the pool is whole", lambda: pool.is_whole(2, 2), WHOLE_S)
            began_s = time.monotonic()
            with Load(pool.url) as load:
                run = Soak(pool, operator, random.Random(seed), load)
                load.answers_go_on()
                while (passed_s := time.monotonic() - began_s) < seconds:
                    run.sample(passed_s)
                    run.turn()
                    Console().print(f"{passed_s:.0f} s: {dict(run.events)}, {len(load.failures)} failed")
                run.sample(time.monotonic() - began_s)
            unexcused = load.unexcused(*run.strikes, excuses=NOBODY_LISTENS if run.strikes else ())
            return {
                "seconds": round(seconds),
                "seed": seed,
                "events": dict(run.events),
                **load.summary(*run.strikes),
                "failed_otherwise": len(unexcused),
                "unexcused": [f"{request.client}: {request.error}" for request in unexcused[:20]],
                "growth_per_hour": {name: growth(run.samples, name) for name in GROWTH},
                "samples": run.samples,
            }


def publish(result: Json) -> None:
    """Write the result and its table."""
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    events = ", ".join(f"{count} x {name}" for name, count in sorted(result["events"].items()))
    lines = [
        f"{result['seconds'] / 60:.0f} minutes, seed {result['seed']}: {events}. {result['requests']} requests,",
        f"{result['failed']} failed, {result['failed_otherwise']} of them without an excuse.",
        "",
        "| what | first | last | growth in an hour (95 %) |",
        "|---|---|---|---|",
        *(
            f"| {name.replace('_', ', ').replace('mib', 'MiB').replace('kib', 'KiB')} | {line['first']} | "
            f"{line['last']} | {line['slope']} ({line['low']} to {line['high']}) |"
            for name, line in result["growth_per_hour"].items()
        ),
    ]
    begin, end = "<!-- soak: written by make prove -->", "<!-- end of soak -->"
    head, rest = DOCUMENT.read_text().split(begin)
    DOCUMENT.write_text("\n".join([head + begin, "", *lines, "", end + rest.split(end)[1]]))


def main() -> None:
    """Run the soak; the exit status is 1 where a request failed without an excuse, or something grew."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as name:
        result = soak(seconds, seed, Path(name))
    publish(result)
    judged = sized(result["growth_per_hour"], {})  # a minute is all warm-up
    grew = {name: line for name, line in judged.items() if line["low"] > GROWTH[name]}
    Console().print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))
    if result["failed_otherwise"] or grew:
        sys.exit(f"failed without an excuse: {result['unexcused']}; grew: {grew}")


if __name__ == "__main__":
    main()
