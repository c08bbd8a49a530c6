"""Webhooks and queries of users: bounded, and no verdict where they do not answer."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from fakes.answering_service import service
from fakes.golden_pictures import check_of, context_of
from segserve_operator.adapters.checks import webhook
from segserve_operator.adapters.checks.promql import filled, numbers_of
from segserve_operator.adapters.checks.triton_queue import Queue, read_queue
from segserve_operator.api.rollout_policy import WebhookGate
from segserve_operator.core.gates.checks import CheckError, ServiceStatus


async def ask_webhook(url: str, *, local: bool = True) -> ServiceStatus:
    gate = WebhookGate(name="own", url=url)
    context = context_of(local=local)
    return await webhook.run(check_of("check", spec=gate, gate="own", phase="Progressing", weight=5), context, print)


def vector(*values: str) -> dict[str, Any]:
    result = [{"metric": {"n": str(number)}, "value": [1.0, value]} for number, value in enumerate(values)]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


# Webhooks


async def test_a_webhook_is_told_of_the_rollout_and_its_status_is_read() -> None:
    told: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        told.append(await request.json())
        return web.json_response({"score": 0.97}, status=202)

    async with service(answer) as url:
        found = await ask_webhook(url)

    assert found == ServiceStatus(202)
    assert told == [
        {
            "model": "coins",
            "gate": "own",
            "candidate": "coins-0000000002",
            "stable": "coins-0000000001",
            "phase": "Progressing",
            "weight": 5,
        }
    ]


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://169.254.169.254/latest")

    async with service(answer) as url:
        assert (await ask_webhook(url)).status == 302


@pytest.mark.parametrize(
    ("url", "local", "why"),
    [
        ("http://[fe80::1]/", True, "link-local"),
        ("http://127.0.0.1:1/", False, "this machine"),
        ("http://localhost:1/", False, "this machine"),
    ],
)
async def test_what_may_not_be_asked_is_no_verdict(url: str, local: bool, why: str) -> None:
    with pytest.raises(CheckError, match=why):
        await ask_webhook(url, local=local)


# Queries


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (vector(), "no result"),
        (vector("NaN"), "not finite"),
        (vector("1", "+Inf"), "not finite"),
        (vector("one"), "not a number"),
        ({"status": "error", "errorType": "bad_data", "error": "unexpected }"}, "refuses the query: bad_data$"),
        ({"status": "success", "data": {"resultType": "matrix", "result": []}}, "without a vector"),
        ("hello", "without a vector"),
    ],
)
def test_a_query_without_numbers_is_no_verdict(body: Any, why: str) -> None:
    with pytest.raises(CheckError, match=why):
        numbers_of(200, body)


def test_names_are_filled_in_as_quoted_label_values() -> None:
    query = 'sum(rate(x{model="{model}",revision="{candidate}"}[1m])) by (le) / {other}'

    seen = filled(query, {"model": "coins", "candidate": 'a"} or up{x="\\', "stable": "s"})

    assert seen == 'sum(rate(x{model="coins",revision="a\\"} or up{x=\\"\\\\"}[1m])) by (le) / {other}'


# Triton's own counts


def test_the_queue_is_that_of_steps_and_requests_are_those_of_ensembles() -> None:
    metrics = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="coins",version="1"} 10
nv_inference_request_success{model="segserve--network--0f",version="1"} 20
nv_inference_queue_duration_us{model="segserve--network--0f",version="1"} 4000000
nv_inference_queue_duration_us{model="segserve--post--1a",version="1"} 1000000
nv_inference_queue_duration_us{model="coins",version="1"} 7
"""

    assert read_queue(metrics) == Queue(5.0, 10.0)
