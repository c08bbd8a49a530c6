"""The worker's process: `python -m segserve_operator.adapters.outbound.child --listener=DESCRIPTOR`."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from segserve_common.http.urls import own_service, service_check
from segserve_operator.adapters.checks.services import DirectServices
from segserve_operator.adapters.notify.post import direct_post
from segserve_operator.adapters.outbound.server import WorkerServer

MEMORY_BYTES: Final = 384 * 2**20
"""Address space; what is in use is a fifth of it. Expressions are evaluated in processes of their own."""

STUCK_S: Final = 60.0
"""Seconds after which a worker whose event loop stands still ends itself."""

_STACK_BYTES: Final = 512 * 1024


def hosts(text: str) -> tuple[str, ...]:
    """Return the hosts in a list with commas."""
    return tuple(part for part in map(str.strip, text.split(",")) if part)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a worker."""
    parser = argparse.ArgumentParser(description="Calls tenants' services for the operator.")
    parser.add_argument("--listener", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--user", type=int, default=os.getuid(), help="user of the operator; default: the own one")
    parser.add_argument("--gate-hosts", type=hosts, default=(), help="hosts that gates may ask")
    parser.add_argument("--notification-hosts", type=hosts, default=(), help="hosts that notifications may call")
    parser.add_argument("--own-services", action="store_true", help="allow this machine and private networks instead")
    return parser.parse_args(arguments)


def limit_resources() -> None:
    """Bound this process's memory and files, if the system can; it leaves no core."""
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 1024),
    ):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM, or until the process at the other end of stdin has ended."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_reader(sys.stdin.fileno(), stopping.set)
    gates = own_service if options.own_services else service_check(options.gate_hosts, "gates.hosts")
    receivers = (
        own_service if options.own_services else service_check(options.notification_hosts, "notifications.hosts")
    )
    listener = socket.socket(fileno=options.listener)
    listener.setblocking(False)
    watchdog = asyncio.create_task(end_once_stuck())
    await WorkerServer(DirectServices(gates), direct_post(receivers), options.user).run(listener, stopping)
    watchdog.cancel()


async def end_once_stuck() -> None:
    """Have the process end, with a trace, once its event loop stands still; for a process of its own alone."""
    while True:
        faulthandler.dump_traceback_later(STUCK_S, exit=True)
        await asyncio.sleep(STUCK_S / 10)


def main() -> None:
    """Run the worker."""
    options = parse(sys.argv[1:])
    limit_resources()
    threading.stack_size(_STACK_BYTES)
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
