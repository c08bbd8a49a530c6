"""Asks services of the user's own: bounded in time and size, and never what only this machine is to reach."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from segserve_operator.adapters.checks.errors import CheckError
from segserve_operator.adapters.notify.addresses import RefusedAddressError, resolved

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES: Final = 64 * 1024
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Reply:
    """What a service answered; `body` is its JSON, or its text where that is none."""

    status: int
    body: Any


async def call(
    method: str,
    url: str,
    *,
    loopback: bool,
    timeout_s: float,
    parameters: Mapping[str, str] | None = None,
    payload: Mapping[str, Any] | None = None,
) -> Reply:
    """Send one request and read all of the answer. Redirects are answers like others; proxies are not used.

    The connection goes to the very address that was examined. Raises `CheckError` where the target is refused or does
    not answer in time, or with more than 64 KiB.
    """
    try:
        target = httpx.URL(url)
        if target.scheme not in _PORTS or not target.host or target.userinfo:
            raise CheckError(f"{_shown(target)}: http or https, a host, and no credentials before it are allowed")
        async with asyncio.timeout(timeout_s):
            return await _exchange(method, target, loopback, timeout_s, parameters or {}, payload)
    except TimeoutError:
        raise CheckError(f"{_shown(target)} did not answer within {timeout_s:.3g} s") from None
    except RefusedAddressError as error:
        raise CheckError(f"not asked: {error}") from error
    except httpx.InvalidURL as error:
        raise CheckError(f"no URL: {error}") from error
    except (httpx.HTTPError, OSError, UnicodeError) as error:
        raise CheckError(f"{_shown(target)} cannot be asked: {error or type(error).__name__}") from error


async def _exchange(
    method: str,
    target: httpx.URL,
    loopback: bool,
    timeout_s: float,
    parameters: Mapping[str, str],
    payload: Mapping[str, Any] | None,
) -> Reply:
    address = await resolved(target.host, target.port or _PORTS[target.scheme], loopback=loopback)
    request = httpx.Request(
        method,
        target.copy_with(host=address),
        data=parameters or None,
        json=payload,
        headers={
            "Host": target.netloc.decode("ascii"),
            "User-Agent": "segserve",
            "Accept-Encoding": "identity",  # a small answer could become a very large one
        },
        extensions={"sni_hostname": target.host, "timeout": httpx.Timeout(timeout_s).as_dict()},
    )
    async with httpx.AsyncHTTPTransport(trust_env=False) as transport:
        answer = await transport.handle_async_request(request)
        try:
            return Reply(answer.status_code, _read(await _bounded(answer, target)))
        finally:
            await answer.aclose()


async def _bounded(answer: httpx.Response, target: httpx.URL) -> bytes:
    body = b""
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > MAX_BYTES:
            raise CheckError(f"{_shown(target)} answers with more than {MAX_BYTES // 1024} KiB")
    return body


def _read(body: bytes) -> Any:
    text = body.decode(errors="replace")
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def _shown(target: httpx.URL) -> str:
    """Return scheme and host alone: the rest may hold a secret."""
    return f"{target.scheme}://{target.netloc.decode('ascii', 'replace').rpartition('@')[2]}"
