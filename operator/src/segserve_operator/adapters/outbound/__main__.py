"""The worker's container: `python -m segserve_operator.adapters.outbound --socket=PATH`.

It keeps the worker running as a child with limits, so that a child that ends affects neither the container's readiness
nor the operator's.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from segserve_operator.adapters.outbound.process import BACKLOG, WorkerProcess

LINGER_S: Final = 5.0
"""Seconds for the last notifications of an operator that is stopped at the same time."""

_MODE: Final = 0o660  # the operator has the pod's group


def listen(path: Path) -> socket.socket:
    """Return a listening socket with a file, in the place of a former process's."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(str(path))
    path.chmod(_MODE)
    listener.listen(BACKLOG)
    return listener


async def serve(path: Path, arguments: list[str]) -> None:
    """Keep a worker running until SIGTERM."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    worker = WorkerProcess(listen(path), arguments, os.environ)
    worker.start()
    await stopping.wait()
    await asyncio.sleep(LINGER_S)
    await worker.close()


def main() -> None:
    """Run the worker; options beside `--socket` are its child's."""
    parser = argparse.ArgumentParser(description="Calls tenants' services for the operator.")
    parser.add_argument("--socket", type=Path, required=True, help="path of the socket that the operator calls")
    options, others = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    asyncio.run(serve(options.socket, others))


if __name__ == "__main__":
    main()
