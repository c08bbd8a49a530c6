"""Time of `import segserve`, compared with imports of other libraries."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

import numpy as np

PROGRAMS: Final = {
    "import segserve": "import segserve",
    "from segserve import Client": "from segserve import Client",
    "import httpx, numpy": "import httpx, numpy",
    "import tritonclient.http": "import tritonclient.http",
    "import tritonclient.grpc": "import tritonclient.grpc",
}
BARE: Final = "pass"


def importing(rounds: int) -> dict[str, float]:
    """Return the milliseconds of each import beyond those of a bare interpreter, as medians of alternating rounds."""
    ms: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds + 1):  # the first round writes bytecode
        bare = _process_ms(BARE)
        for name, program in PROGRAMS.items():
            ms[name].append(_process_ms(program) - bare)
    return {name: round(float(np.median(each[1:])), 1) for name, each in ms.items()}


def _process_ms(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return 1000 * (time.perf_counter() - start)
