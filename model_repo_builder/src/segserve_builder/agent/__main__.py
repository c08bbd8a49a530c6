"""The agent's entry point: `python -m segserve_builder.agent --group-dir DIR --grpc PORT --cache DIR`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
from pathlib import Path

from segserve_builder.agent.lookout import ServerObserver
from segserve_builder.agent.loop import Agent
from segserve_builder.agent.processes import StepProcesses
from segserve_builder.agent.repository import Repository
from segserve_builder.agent.server import TritonServer
from segserve_builder.agent.work import ActionRunner
from segserve_builder.sources.access import ACCESS_VARIABLE, LOCAL, Access


def main() -> None:
    """Keep one Triton equal to its group's assignment until SIGTERM."""
    given = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder: Path = given.group_dir
    server, repository = TritonServer(given.grpc), Repository(folder / "repository")
    lookout = ServerObserver(server, repository, StepProcesses(given.pid_file) if given.pid_file else None)
    told = os.environ.get(ACCESS_VARIABLE)
    access = Access.model_validate_json(told) if told else LOCAL
    agent = Agent(folder, ActionRunner(server, repository, given.cache, folder / "triton.log", access=access), lookout)
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()
        agent.wake()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    agent.run(stop)
    logging.shutdown()
    # Actions may still wait for a load or a download; each is atomic, and the next agent looks what is there.
    os._exit(0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m segserve_builder.agent", description=main.__doc__)
    parser.add_argument("--group-dir", type=Path, required=True, help="folder of assignment, report and repository")
    parser.add_argument("--grpc", type=int, required=True, help="the server's gRPC port, on loopback")
    parser.add_argument("--cache", type=Path, required=True, help="folder of verified artifacts")
    parser.add_argument("--pid-file", type=Path, help="record of the server's process; its steps' are watched then")
    return parser.parse_args()


if __name__ == "__main__":
    main()
