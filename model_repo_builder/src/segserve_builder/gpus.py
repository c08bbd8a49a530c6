"""GPUs of this container, as NVIDIA's driver reports them."""

from __future__ import annotations

import csv
import subprocess
from collections import Counter
from functools import cache
from typing import Final

_FIELDS: Final = ("name", "driver_version", "compute_cap")
_QUERY: Final = ("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader")
_ANSWER_S: Final = 4.0


@cache
def visible_gpus() -> tuple[str, ...]:
    """Return name, driver and compute capability of the GPUs that `nvidia-smi` lists; empty without an answer.

    Equal ones are listed once, with their number.
    """
    try:
        answer = subprocess.run(
            _QUERY, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = csv.reader(answer.stdout.splitlines(), skipinitialspace=True)
    gpus = Counter(
        f"{row[0]}, driver {row[1]}, compute capability {row[2]}" for row in rows if len(row) == len(_FIELDS)
    )
    return tuple(f"{count} x {gpu}" if count > 1 else gpu for gpu, count in gpus.items())
