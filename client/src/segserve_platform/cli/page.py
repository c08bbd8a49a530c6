"""The page of `segserve ui` as commands start it: beside themselves, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import typer

from segserve_platform.cli.errors import needs
from segserve_platform.cli.options import (
    PlatformOptions,
    gateway,
    is_local,
    metrics_source,
    platform_ref,
    selected_platform,
)

if TYPE_CHECKING:
    from segserve_ui.guard import PageAccess

EXTRA: Final = "ui"


def check_page() -> None:
    """Raise `MissingExtraError` if what the page needs is not installed."""
    with needs(EXTRA):
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
