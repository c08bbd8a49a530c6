"""The capture service's entry point: `python3 -m segserve_builder.capture FOLDER --gateway URL`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

from segserve_builder.capture.rule import CaptureFolder
from segserve_builder.capture.service import CaptureService, hide_memory, worker_environment
from segserve_builder.capture.store import SampleStore
from segserve_builder.copies.copies import FrameWorker
from segserve_builder.copies.groups import GroupClient
from segserve_builder.copies.http_server import ByteBudget, serving
from segserve_builder.sources.access import ACCESS_VARIABLE, Access
from segserve_common.logs import LogSettings, start_logging

MAX_REQUEST_BYTES: Final = 64 * 2**20
HELD_BYTES: Final = 64 * 2**20
"""Bodies of all copies together, or two of the largest."""
WORKER_TIMEOUT_S: Final = 30.0


def main() -> None:
    """Keep samples of callers' requests as rules.json says, until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python3 -m segserve_builder.capture", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of the sockets and of rules.json")
    parser.add_argument(
        "--gateway", required=True, help="the gateway's internal listener: http://host:port, or unix: and a path"
    )
    parser.add_argument(
        "--max-request-bytes", type=int, default=MAX_REQUEST_BYTES, help="longest body of a copy, in bytes"
    )
    arguments = parser.parse_args()
    start_logging(LogSettings.of(os.environ))
    hide_memory()
    access = Access.model_validate_json(os.environ.get(ACCESS_VARIABLE, "{}"))
    asyncio.run(_run(CaptureFolder(arguments.folder), arguments.gateway, arguments.max_request_bytes, access))
    logging.shutdown()


async def _run(folder: CaptureFolder, gateway: str, max_request_bytes: int, access: Access) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    groups = GroupClient(gateway)
    worker = FrameWorker(f"{__package__}.worker", timeout_s=WORKER_TIMEOUT_S, environment=worker_environment())
    budget = ByteBudget(max(HELD_BYTES, 2 * max_request_bytes))
    service = CaptureService(folder, groups.ask, worker, budget, lambda uri: SampleStore(uri, access))
    try:
        async with AsyncExitStack() as stack:
            copies = serving(folder.copies, service.take, max_body=max_request_bytes + 5, budget=budget)
            await stack.enter_async_context(copies)
            await stack.enter_async_context(serving(folder.control, service.control, max_body=0, budget=budget))
            running = asyncio.create_task(service.run())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
    finally:
        await worker.close()
        await groups.close()


if __name__ == "__main__":
    main()
