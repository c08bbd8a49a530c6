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
    """Return a client without the token."""
    transport = httpx.ASGITransport(app=page.app)
    return httpx.AsyncClient(transport=transport, base_url=page.access.origins[0], headers=headers)


@pytest.mark.parametrize("path", ["/api/models", "/api/platform", "/api/samples/coins/1", "/nowhere"])
@pytest.mark.parametrize("given", [None, "Bearer guessed", "Bearer gültig", "Bearer ", "Basic TOKEN", "TOKEN"])
async def test_without_the_token_there_is_nothing_but_a_hint(page: Page, path: str, given: str | None) -> None:
    headers = [] if given is None else [(b"authorization", given.replace("TOKEN", page.access.token).encode())]
    async with stranger(page) as client:
        answer = await client.get(path, headers=headers)

    assert answer.status_code == 401
    assert "segserve ui" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/static/js/main.js", "/static/icon.svg", "/favicon.ico"])
async def test_the_frame_of_the_page_is_for_everybody_and_has_no_token(page: Page, path: str) -> None:
    async with stranger(page) as client:
        answer = await client.get(path)

    assert answer.status_code == 200
    assert page.access.token not in answer.text
    assert "set-cookie" not in answer.headers


async def test_the_token_opens_nothing_where_browsers_send_it_by_themselves(page: Page) -> None:
    token = page.access.token
    assert page.access.url.partition("#")[2] == f"token={token}"

    async with stranger(page, cookie=f"token={token}") as client:
        assert (await client.get("/api/models", params={"token": token})).status_code == 401


@pytest.mark.parametrize("host", ["evil.example:4711", "127.0.0.1", "127.0.0.1:80", "10.0.0.1:4711", ""])
async def test_a_name_that_was_pointed_to_loopback_gets_nothing(page: Page, host: str) -> None:
    answer = await page.client.get("/api/models", headers={"host": host})

    assert answer.status_code == 403
    assert answer.json()["error"] == f"this page is at 127.0.0.1:4711 and localhost:4711, got a request for {host!r}"


@pytest.mark.parametrize("origin", OTHERS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_another_origin_gets_nothing_even_with_the_token(page: Page, origin: str, method: str) -> None:
    answer = await page.client.request(method, "/api/rollouts/coins/abort", headers={"origin": origin})

    assert answer.status_code == 403
    assert page.harness.annotations("coins") == {}


@pytest.mark.parametrize("origin", ["http://127.0.0.1:4711", None])
async def test_a_form_changes_nothing_because_it_sends_no_token(page: Page, origin: str | None) -> None:
    async with stranger(page, **({} if origin is None else {"origin": origin})) as client:
        assert (await client.post("/api/rollouts/coins/abort")).status_code == 401

    assert page.harness.annotations("coins") == {}


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
    assert text.count("<script") == text.count(' src="/static/js/')
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"])
async def test_files_beside_the_page_are_not_served(page: Page, path: str) -> None:
    assert (await page.client.get(path)).status_code == 404
