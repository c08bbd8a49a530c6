"""How busy a GPU is while something runs on it."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

_QUERY: Final = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "--id=0")


class GpuUse(NamedTuple):
    """Use in percent and memory in MiB of the first GPU; None where its driver does not say."""

    percent: float | None
    mib: float | None


def gpu_use() -> GpuUse:
    """Return what the first GPU's driver says now."""
    answer = subprocess.run(_QUERY, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
    percent, mib, *_ = [*answer.partition("\n")[0].split(", "), "", ""]
    return GpuUse(_number(percent), _number(mib))


def use_after(seconds: float) -> Future[GpuUse]:
    """Look at the first GPU in so many seconds, while this thread goes on."""
    pool = ThreadPoolExecutor(1)
    look = pool.submit(lambda: (time.sleep(seconds), gpu_use())[1])
    pool.shutdown(wait=False)
    return look


def _number(text: str) -> float | None:
    return float(text) if text.replace(".", "").isdigit() else None
