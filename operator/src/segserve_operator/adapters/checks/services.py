"""Tenants' services, called by this process: a worker without credentials, and tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from segserve_common.http.guard import body_within, send_async, single_use_transport
from segserve_common.http.urls import AddressCheck, RefusedError, RequestError, Url, UrlError
from segserve_operator.adapters.checks.context import Question, ServiceAnswer
from segserve_operator.adapters.checks.promql import numbers_of
from segserve_operator.core.gates.checks import CheckError

MAX_BYTES: Final = 64 * 1024


class DirectServices:
    """Asks services at the addresses that `check_address` allows."""

    def __init__(self, check_address: AddressCheck) -> None:
        self._check_address = check_address

    async def ask(self, question: Question) -> ServiceAnswer:
        """Send a question and return the answer; raises `CheckError` if no answer comes."""
        is_query = question.kind == "promql"
        reply = await call(
            "POST",
            question.url,
            check_address=self._check_address,
            timeout_s=question.timeout_s,
            parameters={name: str(value) for name, value in question.fields.items()} if is_query else None,
            payload=None if is_query else question.fields,
        )
        if not is_query:
            return ServiceAnswer(reply.status)
        numbers = numbers_of(reply.status, reply.body)
        return ServiceAnswer(reply.status, (min(numbers), max(numbers)))


@dataclass(frozen=True, slots=True)
class Reply:
    """The response of a service; `body` is its JSON, or its text if it is not JSON."""

    status: int
    body: Any


async def call(
    method: str,
    url: str,
    *,
    check_address: AddressCheck,
    timeout_s: float,
    parameters: Mapping[str, str] | None = None,
    payload: Mapping[str, Any] | None = None,
) -> Reply:
    """Send `parameters` as a form, or `payload` as JSON, and read the whole response.

    Redirects are not followed, proxies not used. Raises `CheckError` if the target is refused, does not answer within
    `timeout_s`, or answers with more than 64 KiB.
    """
    try:
        target = Url.normalised(url)
    except UrlError as error:
        raise CheckError(str(error)) from error
    # Errors name only scheme and host: the rest of a URL may hold a secret.
    shown = f"{target.scheme}://{target.netloc}"
    try:
        async with asyncio.timeout(timeout_s), single_use_transport(target) as transport:
            response = await send_async(
                transport,
                method,
                target,
                check_address,
                {"Accept-Encoding": "identity"},  # a small body could decompress to a very large one
                timeout_s,
                data=parameters or None,
                json=payload,
            )
            try:
                return Reply(response.status_code, _parsed(await body_within(response, MAX_BYTES)))
            finally:
                await response.aclose()
    except TimeoutError:
        raise CheckError(f"{shown} did not answer within {timeout_s:.3g} s") from None
    except RequestError as error:
        raise CheckError(f"{shown}: {error}") from error
    except RefusedError as error:
        raise CheckError(f"not asked: {error}") from error
    except (httpx.HTTPError, OSError) as error:
        raise CheckError(f"{shown} cannot be asked: {error or type(error).__name__}") from error


def _parsed(body: bytes) -> Any:
    text = body.decode(errors="replace")
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
