"""The supervisor's process: `python -m segserve_operator.local_platform STATE_FOLDER`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from segserve_operator.adapters.local.files import StateFolder, cache_folder
from segserve_operator.adapters.local.processes import ALREADY_RUNS
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.local_platform.supervisor import RunningError, supervise


def main() -> None:
    """Run the supervisor of the given state folder until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m segserve_operator.local_platform")
    parser.add_argument("state", type=Path, help="State folder of the platform.")
    parser.add_argument("--speed", type=float, default=1.0, help="Speed of the clock that decisions are made by.")
    parser.add_argument(
        "--compile-all",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Compile the kernels that no model needs yet, at the lowest priority.",
    )
    options = parser.parse_args()
    state, report = StateFolder(options.state.resolve()), logging.getLogger("segserve").info
    try:
        pool = LocalStore(state).pool()
        supervise(state, cache_folder(), pool, report, options.speed, compile_all=options.compile_all)
    except RunningError:
        sys.exit(ALREADY_RUNS)  # two commands have started one at once
    except Exception as error:
        logging.getLogger("segserve").exception("the supervisor ends")
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
