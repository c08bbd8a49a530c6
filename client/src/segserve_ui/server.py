"""The server of the page, on loopback, and the browser that is opened for it."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn

from segserve_common.files import write_private
from segserve_platform.platforms.errors import ControlError
from segserve_ui.app import create_app
from segserve_ui.backend import UiPlatform
from segserve_ui.guard import PageAccess

if TYPE_CHECKING:
    from starlette.types import ASGIApp

HOST: Final = "127.0.0.1"
REDIRECT: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>segserve</title>'
    '<meta http-equiv="refresh" content="0;url={url}"><p><a href="{url}">Continue</a></p></html>'
)
START_S: Final = 10.0
END_S: Final = 5.0


@contextmanager
def serving(place: UiPlatform, port: int = 0) -> Iterator[PageAccess]:
    """Serve the page on loopback for the duration of the block; port 0 takes a free one.

    Raises `ControlError` if the port is taken, or the server does not start.
    """
    with listening("the page", HOST, port) as listener:
        access = PageAccess(listener.getsockname()[1])
        app, backend = create_app(place, access)
        try:
            with running(app, listener):
                yield access
        finally:
            if access.redirect is not None:
                access.redirect.unlink(missing_ok=True)
            backend.close()


@contextmanager
def listening(what: str, host: str, port: int) -> Iterator[socket.socket]:
    """Listen at an IPv4 address for the duration of the block; raises `ControlError` if `what` cannot."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ControlError(
                f"{what} cannot listen at {host}:{port}: {error.strerror}; choose another --port"
            ) from error
        yield listener


@contextmanager
def running(app: ASGIApp, listener: socket.socket) -> Iterator[None]:
    """Serve an application in a thread for the duration of the block; raises `ControlError` if it does not start."""
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", lifespan="off", ws="none", http="h11", loop="asyncio",
        server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="segserve-ui", daemon=True)
    thread.start()
    try:
        deadline_s = time.monotonic() + START_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline_s:
                raise ControlError("the server did not start at {}:{}".format(*listener.getsockname()))
            time.sleep(0.01)
        yield
    finally:
        # Requests in progress end with the server: their tracebacks are not useful.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join(END_S)


def open_browser(access: PageAccess) -> bool:
    """Open the page in the user's browser; returns whether there is one to open it in.

    Other users can read the command line of a browser: it names a file that they cannot read, which has the token.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False  # a browser for terminals would take over this one
    try:
        # A browser that is a snap opens nothing in /tmp or in a hidden folder.
        access.redirect = Path.home() / f"segserve-page-{access.port}.html"
        write_private(access.redirect, REDIRECT.format(url=access.url))
        return webbrowser.open(access.redirect.as_uri())
    except (OSError, RuntimeError, webbrowser.Error):
        return False
