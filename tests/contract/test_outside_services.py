"""What gates and notifications are promised of tenants' services, whether this process calls them or its worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web

from fakes.answering_service import says, service
from segserve_common.http.urls import RefusedError, UrlError, own_service
from segserve_operator.adapters.checks.context import Question, ServiceAnswer, Services
from segserve_operator.adapters.checks.services import DirectServices
from segserve_operator.adapters.notify.messages import Post, direct_post
from segserve_operator.adapters.outbound.client import own_worker
from segserve_operator.core.gates.checks import CheckError


@dataclass(frozen=True)
class Outside:
    """Both ports."""

    services: Services
    post: Post


@pytest_asyncio.fixture(params=["direct", "worker"], scope="module", loop_scope="module")
async def outside(request: pytest.FixtureRequest) -> AsyncIterator[Outside]:
    if request.param == "direct":
        yield Outside(DirectServices(own_service), direct_post(own_service))
        return
    worker, client = own_worker(["--own-services"], {})
    yield Outside(client, client.post)
    await worker.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


def question(url: str, **changes: Any) -> Question:
    return Question(
        **{
            "kind": "webhook",
            "pool": "lab/default",
            "url": url,
            "fields": {"model": "coins", "weight": 5},
            "timeout_s": 5.0,
            **changes,
        }
    )


async def test_a_webhook_gets_json_and_its_status_is_told(outside: Outside) -> None:
    received: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        received.append((request.headers["Host"], await request.json()))
        return web.json_response({"score": 0.4}, status=202)

    async with service(answer) as url:
        answered = await outside.services.ask(question(url))

    assert answered == ServiceAnswer(202)
    assert received == [(url.removeprefix("http://"), {"model": "coins", "weight": 5})]


async def test_a_prometheus_gets_a_form_and_the_range_of_its_numbers_is_told(outside: Outside) -> None:
    received: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        received.append((await request.post())["query"])
        series = [{"value": [1, value]} for value in ("1.5", "0.25", "1")]
        return web.json_response({"status": "success", "data": {"resultType": "vector", "result": series}})

    async with service(answer) as url:
        answered = await outside.services.ask(question(url, kind="promql", fields={"query": 'up{model="ü"}'}))

    assert answered == ServiceAnswer(200, (0.25, 1.5))
    assert received == ['up{model="ü"}']


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"url": "http://169.254.169.254/"}, "link-local"),
        ({"url": "http://user:word@example.org/"}, "no credentials"),
        ({"url": "http://127.0.0.1:1/secret"}, r"http://127\.0\.0\.1:1 cannot be asked"),
        ({"kind": "promql", "fields": {"query": "up"}}, "without a vector or a scalar"),
    ],
)
async def test_what_is_no_verdict_is_told_without_what_must_not_be_shown(
    outside: Outside, changes: dict[str, Any], problem: str
) -> None:
    async with service(says({"token": "hvs.CAES"})) as url:
        with pytest.raises(CheckError, match=problem) as caught:
            await outside.services.ask(question(**{"url": url, **changes}))

    assert "secret" not in str(caught.value)
    assert "CAES" not in str(caught.value)


async def test_a_late_answer_and_a_large_one_are_no_verdicts(outside: Outside) -> None:
    released = asyncio.Event()

    async def late(_: web.Request) -> web.StreamResponse:
        await released.wait()
        return web.Response()

    async with service(late) as url:
        with pytest.raises(CheckError, match=r"did not answer within 0\.1 s"):
            await outside.services.ask(question(url, timeout_s=0.1))
        released.set()
    async with service(says("x" * 2**17)) as url:
        with pytest.raises(CheckError, match="more than 65536 bytes"):
            await outside.services.ask(question(url))


async def test_a_notification_is_posted_as_json_and_its_status_is_told(outside: Outside) -> None:
    received: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        received.append(await request.json())
        return web.Response(status=429, text="x" * 2**20)

    async with service(answer) as url:
        assert await outside.post(url, {"text": "€" * 3000, "blocks": [{"type": "section"}]}, 5.0) == 429

    assert received == [{"text": "€" * 3000, "blocks": [{"type": "section"}]}]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://169.254.169.254/", RefusedError),
        ("file:///etc/passwd", UrlError),
        ("http://127.0.0.1:1/", (OSError, httpx.HTTPError)),
    ],
)
async def test_a_notification_fails_for_good_or_for_now(outside: Outside, url: str, error: Any) -> None:
    with pytest.raises(error) as caught:
        await outside.post(url, {}, 5.0)

    assert "passwd" not in str(caught.value)
