"""The agent's entry point: `python -m segserve_builder.agent --group-dir DIR --grpc PORT --cache DIR`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
from functools import partial
from pathlib import Path

from segserve_builder.agent.cost import COSTS_FILE, CostAccountant, CostLedger
from segserve_builder.agent.loop import Agent
from segserve_builder.agent.processes import ServerUse, StepProcesses, gpu_count, server_use
from segserve_builder.agent.runner import ActionRunner
from segserve_builder.agent.server import Repository, ServerObserver, TritonServer
from segserve_builder.cpus import available_cpus
from segserve_builder.render.target import BACKEND_VARIABLE, RELEASE_VARIABLE, RenderTarget
from segserve_builder.sources.access import ACCESS_VARIABLE, LOCAL, Access


def main() -> None:
    """Keep one Triton equal to its group's assignment until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m segserve_builder.agent", description=main.__doc__)
    parser.add_argument("--group-dir", type=Path, required=True, help="folder of assignment, report and repository")
    parser.add_argument("--grpc", type=int, required=True, help="the server's gRPC port, on loopback")
    parser.add_argument("--metrics", type=int, help="the server's port of metrics, on loopback")
    parser.add_argument("--cache", type=Path, required=True, help="folder of verified artifacts")
    parser.add_argument(
        "--pid-file", type=Path, help="record of the server's process, to watch it and its steps' processes"
    )
    parser.add_argument("--secret-file", type=Path, help="the word that the server's management API requires")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder: Path = arguments.group_dir
    server, repository = TritonServer(arguments.grpc, arguments.secret_file), Repository(folder / "repository")
    observer = ServerObserver(server, repository, StepProcesses(arguments.pid_file) if arguments.pid_file else None)
    configured = os.environ.get(ACCESS_VARIABLE)
    access = Access.model_validate_json(configured) if configured else LOCAL
    target = RenderTarget.named(os.environ[RELEASE_VARIABLE], os.environ[BACKEND_VARIABLE], available_cpus())
    runner = ActionRunner(server, repository, arguments.cache, folder / "triton.log", target, access=access)
    agent = Agent(folder, runner, observer, metrics_port=arguments.metrics)
    stop = threading.Event()
    if arguments.pid_file:
        ledger = CostLedger(folder / COSTS_FILE)
        uses = partial(_uses, arguments.pid_file)
        CostAccountant(ledger, uses, server.counts, agent.served).start(stop)

    def end(*_: object) -> None:
        stop.set()
        agent.wake()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    agent.run(stop)
    logging.shutdown()
    # Actions may still wait for a load or a download; each is atomic, and the next agent starts from a new snapshot.
    os._exit(0)


def _uses(record: Path) -> ServerUse | None:
    uses = server_use(record)
    return None if uses is None else ServerUse(uses, gpu_count())


if __name__ == "__main__":
    main()
