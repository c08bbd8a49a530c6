"""`segserve ui`: the web page of a platform, served by this process on loopback."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.lifecycle import PORTS, ends_on_signals
from segserve_platform.cli.options import GatewayUrl, PlatformOptions, with_platform_options
from segserve_platform.cli.page import page, show_address


@with_platform_options
def ui(
    platform_options: PlatformOptions,
    port: Annotated[int | None, typer.Option(help="Port on loopback. Default: a free one.", show_default=False)] = None,
    browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Whether to open the page in a browser, if there is a display.")
    ] = True,
    prometheus: Annotated[
        str | None,
        typer.Option(help="URL of a Prometheus that has the metrics. Default: the platform of this machine."),
    ] = None,
    url: GatewayUrl = None,
) -> None:
    """Serve a web page on this machine: segment images, compare two models, follow models, rollouts and samples.

    This process serves it until Ctrl-C, on loopback alone and with your own rights; the printed address has a token.
    On a cluster, rates and latencies come from its Prometheus.
    """
    if port is not None and port not in PORTS:
        raise CommandError(f"--port must be within 1..65535, got {port}")
    with ends_on_signals(), page(platform_options, port, prometheus, url) as access:
        show_address(access, browser=browser)
        threading.Event().wait()
