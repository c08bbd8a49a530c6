"""Time from an exporter's file to the first mask: `init`, `up` and `predict` as a user types them.

    PYTHONPATH=tests python -m bench.exporters

Writes bench/out/exporters.json, which the page of exporters shows. Kernels are compiled before, as `make kernels` does.
Each file is exported with random weights; one photograph is asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.platform import ROOT, Running
from bench.ports import free_port
from bench.smoke import output, sized
from networks.exporter_files import SIX
from tools import EXPORTERS

RESULT: Final = output("bench/out/exporters.json")


def measured(case: str, folder: Path) -> dict[str, float]:
    """Return the seconds of each command for one file."""
    subprocess.run(
        [EXPORTERS, "-W", "ignore", ROOT / "tests/oracles/exporters.py", case, folder], cwd=folder, check=True
    )
    platform, port = Running("", Path(tempfile.mkdtemp(prefix="segserve-"))), str(free_port())
    commands = {
        "init": ["init", f"{folder}/photos", f"{folder}/net.onnx", "-o", f"{folder}/net"],
        "up": ["up", "--detach", "--port", port, "-f", f"{folder}/net/model.yaml"],
        "predict": ["predict", "net", f"{folder}/photos/0.png", "-o", f"{folder}/overlays"],
    }
    times = {}
    try:
        for name, arguments in commands.items():
            started_s = time.perf_counter()
            platform.segserve(*arguments)
            times[name] = round(time.perf_counter() - started_s, 1)
    finally:
        platform.segserve("down")
        shutil.rmtree(platform.state, ignore_errors=True)
    return times


if __name__ == "__main__":
    found = {}
    for each in sized(SIX, SIX[:1]):
        with tempfile.TemporaryDirectory() as place:
            found[each] = measured(each, Path(place))
    RESULT.write_text(json.dumps({"cores": os.cpu_count(), "seconds": found}, indent=1) + "\n")
