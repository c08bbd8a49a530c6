"""Reads of servers that may be starting, which are made again until they are answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import httpx

from fakes.waiting import until

T = TypeVar("T")

BROKEN_OFF: Final = (httpx.TransportError, OSError)
"""What a connection ends with whose server is not there yet, or gives up before it has answered; also in the middle of
a TLS record."""
NOT_YET: Final = frozenset({429, 502, 503, 504})
"""What an API server answers that does not serve everything yet."""


def read_again(read: Callable[[], httpx.Response]) -> httpx.Response:
    """Return the first answer to a read that its server means. Only for what may be asked as often as one likes."""
    answers: list[httpx.Response | Exception] = []

    def is_answered() -> bool:
        try:
            answers[:] = [read()]
        except BROKEN_OFF as error:
            answers[:] = [error]
        return isinstance(answers[0], httpx.Response) and answers[0].status_code not in NOT_YET

    until(is_answered, "an answer")
    assert isinstance(answers[0], httpx.Response)
    return answers[0]
