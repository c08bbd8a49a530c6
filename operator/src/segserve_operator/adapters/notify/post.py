"""Posts of JSON to tenants' receivers by this process: a worker without credentials, and tests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from segserve_common.http.guard import send_async, single_use_transport
from segserve_common.http.urls import AddressCheck, Url


class Post(Protocol):
    """A sender of messages."""

    async def __call__(
        self, url: str, payload: Mapping[str, Any], timeout_s: float, ca_bundle: str | None = None
    ) -> int:
        """Post JSON and return the status of the response; `ca_bundle` as of a `Target`.

        Raises `RefusedError` or `UrlError` for a receiver that must not be called, and `OSError` or `httpx.HTTPError`
        if there is no response within `timeout_s`.
        """
        ...


def direct_post(check_address: AddressCheck) -> Post:
    """Return what posts to the addresses that `check_address` allows.

    Redirects are not followed, proxies not used, and the body of the response is not read: it could be endless.
    """

    async def post(url: str, payload: Mapping[str, Any], timeout_s: float, ca_bundle: str | None = None) -> int:
        target = Url.normalised(url)
        # A transport and not a client: clients log whole URLs, which may be secret.
        async with asyncio.timeout(timeout_s), single_use_transport(target, ca_bundle) as transport:
            response = await send_async(transport, "POST", target, check_address, {}, timeout_s, json=payload)
            await response.aclose()
        return response.status_code

    return post
