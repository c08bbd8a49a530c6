"""The local platform's supervisor with servers that can be made to misbehave: `python -m faults.supervisor STATE CODE`.

It differs from the shipped one in the folder of the servers' code, which is the same code with `inside` beside it, and
in its clock, which is ahead by the seconds that the file `clock-step` of the state folder tells. A third argument is
the speed of that clock.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from segserve_operator.adapters.local.files import StateFolder, cache_folder
from segserve_operator.adapters.local.runtime import RuntimeEnvironment, ensure_runtime
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.local_platform import supervisor

INSIDE: Final = Path(__file__).with_name("inside")
CLOCK_STEP: Final = "clock-step"


def code_with_faults(folder: Path, runtime: RuntimeEnvironment) -> Path:
    """Make the folder of the servers' code: the runtime's own package, and what makes it misbehave."""
    if not folder.exists():
        shutil.copytree(runtime.code, folder)
        shutil.copy2(INSIDE / "sitecustomize.py", folder)
    return folder


def stepped(state: StateFolder, clock: Callable[[], float] = time.time) -> float:
    """Return the time, as a clock tells it that somebody may have set."""
    try:
        return clock() + float((state.root / CLOCK_STEP).read_text())
    except FileNotFoundError:
        return clock()


def main() -> None:
    """Supervise the platform of a state folder until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    state = StateFolder(Path(sys.argv[1]).resolve())
    with supervisor.only_supervisor(state):
        runtime = ensure_runtime(cache_folder())
        runtime = replace(runtime, code=code_with_faults(Path(sys.argv[2]), runtime))
        speed = float(sys.argv[3]) if len(sys.argv) > 3 else 1.0
        platform = supervisor.Supervisor(state, cache_folder(), LocalStore(state).pool(), runtime, speed)
        platform.service = replace(platform.service, clock=lambda: stepped(state, platform.clock))
        asyncio.run(supervisor._run(platform))
        state.platform.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
