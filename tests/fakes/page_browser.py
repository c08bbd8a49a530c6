"""A real browser, and in it the page of `segserve ui`, or that at a gateway's root."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from fakes.waiting import HANG_S
from segserve_platform.cli.options import PlatformOptions
from segserve_platform.cli.page import page as page_of
from segserve_ui.guard import PageAccess

ARGUMENTS: Final = [
    "--no-sandbox",  # root, a container's user, has none; it sees this page alone
    "--use-fake-device-for-media-stream",  # a camera
    "--use-fake-ui-for-media-stream",
]


@contextmanager
def served_page(state: Path) -> Iterator[PageAccess]:
    """Serve the page beside the platform of a state folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSERVE_STATE", str(state))
        with page_of(PlatformOptions(local=True)) as found:
            yield found


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; what is expected of its pages may take as long as anything that does not hang."""
    expect.set_options(timeout=1000 * HANG_S)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, access: PageAccess, *, has_touch: bool = False) -> Iterator[Page]:
    """Open the page as somebody does who has the printed address; its console must stay silent."""
    with silent(browser, access.url, has_touch=has_touch) as page:
        expect(page.get_by_role("heading", name="Playground")).to_be_visible(timeout=1000 * HANG_S)
        yield page


@contextmanager
def silent(
    browser: Browser,
    url: str,
    size: tuple[int, int] = (1440, 900),
    *,
    has_touch: bool = False,
    complaints: tuple[str, ...] = (),
) -> Iterator[Page]:
    """Open an address; the console must say nothing but what has one of `complaints` in it."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, has_touch=has_touch)
    page, said = context.new_page(), list[str]()
    page.set_default_timeout(1000 * HANG_S)
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    loud = [text for text in said if not any(known in text for known in complaints)]
    assert not loud, loud
