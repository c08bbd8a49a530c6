"""The end of a call's time, whatever it is spent on."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from segserve.errors import DeadlineExceededError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from segserve.calls.endpoint import Endpoint
    from segserve.calls.session import Send


@asynccontextmanager
async def whole_time(endpoint: Endpoint, step: Send) -> AsyncIterator[None]:
    """End the block when the step's time is up, with a `DeadlineExceededError`."""
    try:
        async with asyncio.timeout(step.timeout_s) as timer:
            yield
    except TimeoutError as error:
        if not timer.expired():
            raise  # of a token's function
        raise late(endpoint, step) from error


def late(endpoint: Endpoint, step: Send) -> DeadlineExceededError:
    """Return the error of a call whose time is up."""
    return DeadlineExceededError(f"{endpoint.url} gave no whole answer within {step.timeout_s:.3g} s")
