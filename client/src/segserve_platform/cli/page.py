"""`segserve ui`, and its page as other commands start it: beside themselves, on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

from segserve_platform.cli.errors import CommandError, needs
from segserve_platform.cli.options import (
    PORTS,
    GatewayUrl,
    PlatformOptions,
    gateway,
    is_local,
    metrics_source,
    platform_ref,
    selected_platform,
    with_platform_options,
)
from segserve_platform.cli.signals import ends_on_signals

if TYPE_CHECKING:
    from segserve_ui.guard import PageAccess

PAGE_EXTRA: Final = "ui"


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


def check_page() -> None:
    """Raise `MissingExtraError` if what the page needs is not installed."""
    with needs(PAGE_EXTRA):
        import starlette
        import uvicorn

        del starlette, uvicorn


@contextmanager
def page(
    platform_options: PlatformOptions, port: int | None = None, prometheus: str | None = None, url: str | None = None
) -> Iterator[PageAccess]:
    """Serve the page of the selected platform for the duration of the block."""
    check_page()
    from segserve_ui.backend import UiPlatform
    from segserve_ui.server import serving

    local = is_local(platform_options)
    place = UiPlatform(
        platform_ref(platform_options),
        selected_platform(platform_options),
        lambda model: gateway(platform_options, model, url),
        metrics_source(platform_options, prometheus) if local or prometheus is not None else None,
    )
    with serving(place, port or 0) as access:
        yield access


def show_address(access: PageAccess, *, browser: bool) -> None:
    """Print the page's address, and open it in a browser if there is one."""
    from segserve_ui.server import open_browser

    typer.echo(f"page: {access.url}  (only from this machine; stop it with Ctrl-C)")
    if browser:
        open_browser(access)
