"""How a sheet is fetched from a comparator, within bounds."""

from __future__ import annotations

from typing import Final

import httpx

from segserve_builder.comparator.sheet import MOST_PAIR_BYTES, MOST_PAIRS
from segserve_common.http.urls import RequestError

TIMEOUT_S: Final = 30.0
MAX_SHEET_BYTES: Final = 2 * MOST_PAIRS * MOST_PAIR_BYTES
"""Largest sheet as JSON: its bytes are in base64."""


def fetch_sheet(transport: httpx.BaseTransport, model: str, url: str = "http://comparator") -> bytes | None:
    """Return the sheet of a model's pairs that differ most, `comparator.sheet.Sheet` as JSON.

    None if there is no comparator, or if it has no pairs of this model. Raises `RequestError` if it answers otherwise
    than with a sheet of at most `MAX_SHEET_BYTES`.
    """
    received = bytearray()
    try:
        with (
            httpx.Client(transport=transport, timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream("GET", f"{url}/sheet", params={"model": model}) as response,
        ):
            if response.status_code == httpx.codes.NOT_FOUND:
                return None
            if response.status_code != httpx.codes.OK:
                raise RequestError(f"the comparator answered {response.status_code}")
            for part in response.iter_raw():
                received += part
                if len(received) > MAX_SHEET_BYTES:
                    raise RequestError(f"the comparator's sheet has more than {MAX_SHEET_BYTES:,} bytes")
    except httpx.ConnectError:
        return None  # its process has ended and left the socket
    except httpx.HTTPError as error:
        raise RequestError(f"the comparator cannot be asked: {error or type(error).__name__}") from error
    return bytes(received)
