"""CPU of short commands, of a change and of a platform at rest, in units of `python -c "import numpy"`.

    python -m bench.hands

Writes bench/out/hands.json. CPU is user and system time of a process and its children. Commands and the unit are run
in turn, and each figure is the median of the rounds' ratios. Run it on a quiet machine: importing numpy maps large
files, which a busy one makes slower than Python's own work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from bench.coins import variant, write
from bench.platform import ROOT, Running, platform
from bench.smoke import output, sized

ROUNDS: Final = sized(9, 1)
NAME: Final = "coins-instances"
REST_S: Final = sized(30.0, 1.0)
MODELS: Final = sized(100, 2)
OVERLAYS: Final = sized(40, 2)
PHOTO: Final = ROOT / "examples/coins/coins.png"
SEGSERVE: Final = str(Path(sys.executable).with_name("segserve"))
NUMPY: Final = (sys.executable, "-c", "import numpy")
LIMITS: Final = {
    "--help": 1.5,
    "version": 1.5,
    "get": 1.5,
    "down of nothing": 1.5,
    "predict of one photograph": 3.0,
    "apply of a threshold to Ready": 12.0,
}
"""What each may take, in units of `import numpy`."""


def cpu_s(*arguments: str, **environment: str) -> float:
    """Run a program, and return its CPU in seconds."""
    child = subprocess.Popen(arguments, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(arguments)} exited with {child.returncode}")
    return used.ru_utime + used.ru_stime


def platform_cpu_s(running: Running) -> float:
    """Return the CPU of all processes of a platform so far, in seconds; ended ones that were reaped count as well."""
    total = 0.0
    for process in running.processes():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def main() -> int:
    """Measure, write the results, and print them."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found, cores = ratios(folder), at_rest(folder)
    load = [round(each, 2) for each in (before, os.getloadavg()[0])]
    result = {"ratios": found, "at rest, cores": cores, "load before and after": load}
    output("bench/out/hands.json").write_text(json.dumps(result, indent=1) + "\n")
    table = Table("", "import numpy", "limit", title="CPU")
    for what, ratio in found.items():
        table.add_row(what, f"{ratio:.2f}", f"{LIMITS[what]:g}" if what in LIMITS else "")
    Console().print(table, f"{MODELS} models at rest: {cores} cores; load {load[0]} before, {load[1]} after")
    return 0


def model(number: int) -> dict[str, Any]:
    """Return the example's instances with another threshold for each number."""
    document = variant(model=NAME, expose=[], golden=None)
    document["spec"]["postprocess"][0] = {"scoreThreshold": {"threshold": 0.3 + number / 100}}
    return document


def ratios(folder: Path) -> dict[str, float]:
    """Return the CPU of each command, and of an overlay, in units of `import numpy`."""
    rounds: dict[str, list[float]] = {}
    photos = folder / "photos"
    photos.mkdir()
    for number in range(OVERLAYS):
        shutil.copy(PHOTO, photos / f"{number}.png")
    nothing = {"SEGSERVE_STATE": str(folder / "nothing")}
    with platform() as running:
        state = {"SEGSERVE_STATE": str(running.state)}
        running.segserve("apply", "-f", str(write(folder / "model.yaml", model(0))))
        running.segserve("wait", NAME)
        for number in range(ROUNDS):
            unit = cpu_s(*NUMPY)
            found = {
                "--help": cpu_s(SEGSERVE, "--help"),
                "version": cpu_s(SEGSERVE, "version", **state),
                "get": cpu_s(SEGSERVE, "get", **state),
                "down of nothing": cpu_s(SEGSERVE, "down", **nothing),
                "predict of one photograph": cpu_s(SEGSERVE, "predict", NAME, str(PHOTO), **state),
            }
            many = ("predict", NAME, str(photos))
            plain = cpu_s(SEGSERVE, *many, **state)
            drawn = cpu_s(SEGSERVE, *many, "-o", str(folder / "overlays"), **state)
            found["an overlay"] = (drawn - plain) / OVERLAYS
            path, before = write(folder / "model.yaml", model(number + 1)), platform_cpu_s(running)
            commands = cpu_s(SEGSERVE, "apply", "-f", str(path), **state) + cpu_s(SEGSERVE, "wait", NAME, **state)
            found["apply of a threshold to Ready"] = commands + platform_cpu_s(running) - before
            for what, used in found.items():
                rounds.setdefault(what, []).append(used / unit)
    return {what: round(median(each), 2) for what, each in rounds.items()}


def at_rest(folder: Path) -> float:
    """Return the cores that a platform with many models takes while nothing changes."""
    models = [variant(name=f"coins-{number}", expose=[], golden=None, processes="shared") for number in range(MODELS)]
    with platform() as running:
        running.segserve("apply", "-f", str(write(folder / "models.yaml", *models)))
        running.segserve("wait", "--timeout", "600s", *(f"coins-{number}" for number in range(MODELS)))
        time.sleep(REST_S)
        before, began_s = platform_cpu_s(running), time.monotonic()
        time.sleep(REST_S)
        return round((platform_cpu_s(running) - before) / (time.monotonic() - began_s), 3)


if __name__ == "__main__":
    sys.exit(main())
