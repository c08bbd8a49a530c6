"""The comparator's entry point: `python3 -m segserve_builder.comparator FOLDER --gateway URL`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from segserve_builder.comparator.comparing import AnswerComparer
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_builder.comparator.service import Comparator
from segserve_builder.copies.groups import GroupClient
from segserve_builder.copies.http_server import ByteBudget, serving
from segserve_common.logs import LogSettings, start_logging

MAX_REQUEST_BYTES: Final = 64 * 2**20
SHEETS_CONNECTIONS: Final = 2
"""Connections to the port for sheets: each may hold a whole sheet."""
HELD_BYTES: Final = 64 * 2**20
"""Bodies of all copies together, or two of the largest."""


def main() -> None:
    """Ask two revisions the same requests, and count how their answers differ, until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python3 -m segserve_builder.comparator", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of the sockets and of comparisons.json")
    parser.add_argument(
        "--gateway", required=True, help="the gateway's internal listener: http://host:port, or unix: and a path"
    )
    parser.add_argument(
        "--max-request-bytes", type=int, default=MAX_REQUEST_BYTES, help="longest body of a copy, in bytes"
    )
    parser.add_argument("--sheets-port", type=int, help="port of loopback that shows sheets. Default: none")
    arguments = parser.parse_args()
    start_logging(LogSettings.of(os.environ))
    folder = ComparatorFolder(arguments.folder)
    asyncio.run(_run(folder, arguments.gateway, arguments.max_request_bytes, arguments.sheets_port))
    logging.shutdown()


async def _run(folder: ComparatorFolder, gateway: str, max_request_bytes: int, sheets_port: int | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    groups = GroupClient(gateway)
    budget = ByteBudget(max(HELD_BYTES, 2 * max_request_bytes))
    comparer = AnswerComparer()
    comparator = Comparator(folder, groups.ask, comparer.compare, budget)
    try:
        async with AsyncExitStack() as stack:
            for at, handler, max_body in (
                (folder.control, comparator.control, 0),
                (folder.copies, comparator.take, max_request_bytes + 5),  # the frame of a gRPC message comes on top
            ):
                await stack.enter_async_context(serving(at, handler, max_body=max_body, budget=budget))
            if sheets_port is not None:
                shown = serving(
                    sheets_port, comparator.show, max_body=0, budget=budget, max_connections=SHEETS_CONNECTIONS
                )
                await stack.enter_async_context(shown)
            follower = asyncio.create_task(comparator.follow())
            await stop.wait()
            follower.cancel()
    finally:
        await comparator.close()
        await comparer.close()
        await groups.close()


if __name__ == "__main__":
    main()
