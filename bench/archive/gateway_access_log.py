"""What the gateway's access log costs callers.

    python -m bench.archive.gateway_access_log

Writes bench/out/gateway_access_log.json. Real Envoys in front of a stand-in for a server that answers at once, one for
each setting of the log, and one caller who asks them in turns, 200 requests of 40 kB over HTTP at a time, so that
whatever else the machine does concerns all of them; and the processor time that each Envoy needs for a request. The
load average is written beside the figures.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psutil

from bench.archive.gateway_guards import Caller, standing_server
from bench.archive.gateway_mirror import processor_s, publish, summary
from bench.platform import ROOT
from bench.ports import free_ports
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings
from segserve_operator.api.telemetry import AccessLog
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

OUT: Final = ROOT / "bench/out/gateway_access_log.json"
ROUNDS: Final = 40
CALLS: Final = 200
BODY: Final = bytes(40_000)
SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "no log": {},
    "errors alone": {"access_log": AccessLog()},
    "errors and 1 %": {"access_log": AccessLog(sampling_ratio=0.01)},
    "all": {"access_log": AccessLog(sampling_ratio=1.0)},
}


def _start(folder: Path, server: Endpoint, options: Mapping[str, Any], stack: ExitStack) -> tuple[EnvoyTraffic, int]:
    """Start an Envoy that is ended with the stack, and return what steers it, and its process."""
    (port,) = free_ports(1)
    file = folder / "access.log"
    traffic = EnvoyTraffic(folder, EnvoySettings(port=port, access_log_file=file, **options))
    traffic.prepare(TrafficPlan((Route("coins", (Share("main", "coins-a", 100, (server,)),)),), (server,)))
    process = subprocess.Popen(traffic.command(), stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return traffic, process.pid


async def measure(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, by setting, the median of the rounds' median and 99th percentile, and Envoy's time for a request."""
    took: dict[str, list[list[float]]] = {name: [] for name in settings}
    used_s: dict[str, float] = dict.fromkeys(settings, 0.0)
    with tempfile.TemporaryDirectory() as parent, standing_server(0) as server, ExitStack() as stack:
        callers: dict[str, tuple[Caller, psutil.Process]] = {}
        for number, (name, options) in enumerate(settings.items()):
            traffic, pid = _start(Path(parent) / str(number), server, options, stack)
            while (await traffic.observe()).plan is None:
                await asyncio.sleep(0.05)
            callers[name] = Caller(int(traffic.url.rpartition(":")[2])), psutil.Process(pid)
        for turn in range(ROUNDS + 1):
            for name, (caller, envoy) in callers.items():
                before_s = processor_s(envoy)
                outcomes = [await caller.call(BODY) for _ in range(CALLS)]
                assert {status for status, _ in outcomes} == {200}, name
                if turn:  # the first one warms up
                    used_s[name] += processor_s(envoy) - before_s
                    took[name].append([1e3 * spent_s for _, spent_s in outcomes])
    return {name: summary(rounds, used_s[name] / (ROUNDS * CALLS)) for name, rounds in took.items()}


if __name__ == "__main__":
    publish(lambda: measure(SETTINGS), OUT)
