"""Who gets the page: somebody of this machine with its address, and no other site's page."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from fakes.control import Harness, LocalHarness

from .conftest import Page, serving_models

OTHERS = ("http://evil.example", "http://127.0.0.1:4712", "null", "https://127.0.0.1:4711")


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """This machine's platform alone: access has nothing to do with what is behind the page."""
    return serving_models(LocalHarness(tmp_path / "state"), "coins")


def stranger(page: Page, **headers: str) -> httpx.AsyncClient:
    """Return a client without the cookie."""
    transport = httpx.ASGITransport(app=page.app)
    return httpx.AsyncClient(transport=transport, base_url=page.access.origins[0], headers=headers)


@pytest.mark.parametrize("path", ["/", "/static/js/main.js", "/api/models", "/api/platform", "/nowhere"])
async def test_without_the_token_there_is_nothing_but_a_hint(page: Page, path: str) -> None:
    async with stranger(page) as client:
        answers = [await client.get(path), await client.get(path, params={"token": "guessed"})]

    assert {answer.status_code for answer in answers} == {401}
    assert all("segserve ui" in answer.json()["error"] for answer in answers)


async def test_the_token_becomes_a_cookie_that_no_script_and_no_other_site_gets(page: Page) -> None:
    async with stranger(page) as client:
        entered = await client.get("/", params={"token": page.access.token})

        assert entered.status_code == 200
        cookie = entered.headers["set-cookie"]
        assert page.access.token not in cookie
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert cookie.startswith(f"segserve-ui-{page.access.port}=")
        assert (await client.get("/")).status_code == 200


async def test_a_ticket_opens_the_page_once(page: Page) -> None:
    url = page.access.ticket_url()

    async with stranger(page) as first, stranger(page) as second:
        assert (await first.get(url)).status_code == 200
        assert (await second.get(url)).status_code == 401


async def test_a_guess_in_any_letters_is_no_ticket(page: Page) -> None:
    page.access.ticket_url()

    async with stranger(page) as client:
        assert (await client.get("/", params={"token": "gültig"})).status_code == 401


@pytest.mark.parametrize("host", ["evil.example:4711", "127.0.0.1", "127.0.0.1:80", "10.0.0.1:4711", ""])
async def test_a_name_that_was_pointed_to_loopback_gets_nothing(page: Page, host: str) -> None:
    answer = await page.client.get("/api/models", headers={"host": host})

    assert answer.status_code == 403
    assert answer.json()["error"] == f"this page is at 127.0.0.1:4711 and localhost:4711, got a request for {host!r}"


@pytest.mark.parametrize("origin", OTHERS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_another_origin_gets_nothing_even_with_the_cookie(page: Page, origin: str, method: str) -> None:
    answer = await page.client.request(method, "/api/rollouts/coins/abort", headers={"origin": origin})

    assert answer.status_code == 403
    assert page.harness.annotations("coins") == {}


async def test_a_form_without_an_origin_changes_nothing(page: Page) -> None:
    del page.client.headers["origin"]

    answer = await page.client.post("/api/rollouts/coins/abort")

    assert answer.status_code == 403
    assert "must have an Origin" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/static/js/main.js", "/api/models", "/nowhere", "/api/segment"])
async def test_every_answer_has_the_headers_of_security(page: Page, path: str) -> None:
    async with stranger(page) as client:
        answers = [await page.client.get(path), await client.get(path)]

    for answer in answers:
        policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"


async def test_the_page_has_no_inline_script_or_style(page: Page) -> None:
    text = (await page.client.get("/")).text

    assert "<style" not in text
    assert " style=" not in text
    assert text.count("<script") == text.count('<script type="module" src="/static/')
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"])
async def test_files_beside_the_page_are_not_served(page: Page, path: str) -> None:
    assert (await page.client.get(path)).status_code == 404
