"""The supervisor's process: `python -m segserve_operator.local_platform STATE_FOLDER [SPEED]`.

With a speed, decisions are made by a clock that is as many times faster: examples/coins/rollout_demo.py.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from segserve_operator.adapters.local.files import StateFolder, cache_folder
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.local_platform.supervisor import supervise


def main() -> None:
    """Run the supervisor of the given state folder until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    state, speed = StateFolder(Path(sys.argv[1]).resolve()), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    try:
        supervise(state, cache_folder(), LocalStore(state).pool(), logging.getLogger("segserve").info, speed)
    except Exception as error:
        logging.getLogger("segserve").exception("the supervisor ends")
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
