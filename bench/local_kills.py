"""What callers notice if a process of the local platform is killed while other processes keep every core busy.

`python -m bench.local_kills [--callers 16] [--busy 4]` prints a line for each process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import httpx
import psutil

from bench.platform import MODELS, ROOT, Running, platform
from bench.smoke import sized
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder, read_platform

PHOTO: Final = ROOT / "examples/coins/coins.png"
BEFORE_S: Final = sized(10.0, 1.0)
QUIET_S: Final = sized(15.0, 5.0)
"""It is over once no request has failed for so long."""
LONGEST_S: Final = 180.0
RECORDS: Final = {"agent": "groups/main/agent", "Triton": "groups/main/triton", "Envoy": "gateway/envoy"}
SPIN: Final = "while True: pass"


@dataclass
class Callers:
    """Callers that ask for the photograph as fast as they are answered, without retries."""

    url: str
    count: int
    outcomes: list[tuple[float, str]] = field(default_factory=list)
    retry_after: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()

    def _call(self) -> None:
        body, headers = PHOTO.read_bytes(), {"content-type": "image/png"}
        with httpx.Client(timeout=60.0) as client:
            while not self._ended.is_set():
                try:
                    answer = client.post(f"{self.url}/v1/models/coins:segment", content=body, headers=headers)
                    outcome = str(answer.status_code)
                    if outcome == "503":
                        self.retry_after[answer.headers.get("retry-after", "none")] += 1
                except httpx.HTTPError as error:
                    outcome = type(error).__name__
                self.outcomes.append((time.monotonic(), outcome))
                if outcome != "200":
                    time.sleep(0.2)

    def end(self) -> None:
        """Return once all have their last answer."""
        self._ended.set()
        for thread in self._threads:
            thread.join()


def victim(running: Running, name: str) -> psutil.Process:
    """Return the process to kill."""
    if name == "supervisor":
        platform_record = read_platform(StateFolder(running.state))
        record = platform_record.process if platform_record is not None else None
    else:
        record = processes.read_record(running.state / f"{RECORDS[name]}.process.json")
    if record is None:
        raise RuntimeError(f"no {name} runs")
    return psutil.Process(record.pid)


def kill(running: Running, name: str, callers: int) -> str:
    """Kill a process under callers, and return what they saw."""
    asking = Callers(running.url, callers)
    time.sleep(BEFORE_S)
    former = victim(running, name)
    killed_s = time.monotonic()
    former.kill()
    again_s = None
    while time.monotonic() - killed_s < LONGEST_S:
        time.sleep(0.1)
        with suppress(RuntimeError, psutil.Error):
            if again_s is None and victim(running, name).pid != former.pid:
                again_s = time.monotonic() - killed_s
        failed = [at_s for at_s, outcome in asking.outcomes if outcome != "200"]
        if time.monotonic() - max([killed_s, *failed]) > QUIET_S:
            break
    asking.end()
    since = [(at_s, outcome) for at_s, outcome in asking.outcomes if at_s >= killed_s]
    failed = [at_s - killed_s for at_s, outcome in since if outcome != "200"]
    counts = dict(Counter(outcome for _, outcome in since))
    again = "not started again" if again_s is None else f"again after {again_s:.1f} s"
    last = f"last failure {max(failed):.1f} s after" if failed else "no failure"
    load = os.getloadavg()[0]
    retry = f"; Retry-After {dict(asking.retry_after)}" if asking.retry_after else ""
    return f"{name}: {len(failed)} of {len(since)} failed; {counts}; {last}; {again}; load {load:.0f}{retry}"


def main() -> None:
    """Kill each process in turn, and print what callers saw."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--callers", type=int, default=sized(16, 2))
    parser.add_argument("--busy", type=int, default=sized(4, 1), help="processes that keep cores busy")
    parser.add_argument("--only", choices=[*RECORDS, "supervisor"], action="append")
    options = parser.parse_args()
    with platform(MODELS) as running:
        busy = [subprocess.Popen([sys.executable, "-S", "-c", SPIN]) for _ in range(options.busy)]
        try:
            for name in options.only or [*RECORDS, "supervisor"]:
                print(kill(running, name, options.callers), flush=True)
        finally:
            for process in busy:
                process.kill()


if __name__ == "__main__":
    main()
