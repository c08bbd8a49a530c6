"""The client for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self, TypeVar

from segserve.endpoint import Endpoint
from segserve.errors import SegserveError
from segserve.images import image_tensor
from segserve.session import Flow, SegmentOptions, Session, Wait
from segserve.transports import open_async_transport

if TYPE_CHECKING:
    from segserve.images import ImageLike
    from segserve.results import Result
    from segserve.transports import TransportName
    from segserve.types import Encoding, ModelInfo

T = TypeVar("T")


class AsyncClient:
    """`Client` for the tasks of one event loop; see there."""

    def __init__(
        self,
        url: str | None = None,
        *,
        transport: TransportName = "http",
        timeout_s: float = 30.0,
        retries: int = 2,
    ) -> None:
        self._session = Session(timeout_s, retries)
        self._transport = open_async_transport(transport, Endpoint.parse(url))

    async def segment(
        self,
        image: ImageLike,
        *,
        model: str,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        encoding: Encoding | None = None,
        confidence: bool = False,
        timeout_s: float | None = None,
    ) -> Result:
        """Segment one image, as `Client.segment` does."""
        options = SegmentOptions(model, score_threshold, max_detections, encoding, confidence, timeout_s)
        # Reading a file or making a PNG would hold up every other task.
        tensor = await asyncio.to_thread(image_tensor, image)
        return await self._run(self._session.segment(tensor, options))

    async def model_info(self, model: str) -> ModelInfo:
        """Return what is served under a name now: revision, classes, outputs."""
        return await self._run(self._session.model_info(model))

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = await self._transport.send(step.request, step.timeout_s)
                except SegserveError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            value: T = end.value
            return value
