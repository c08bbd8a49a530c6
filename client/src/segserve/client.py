"""The client for threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self, TypeVar

from segserve.endpoint import Endpoint
from segserve.errors import SegserveError
from segserve.images import image_tensor
from segserve.session import Flow, SegmentOptions, Session, Wait
from segserve.transports import open_transport

if TYPE_CHECKING:
    from segserve.images import ImageLike
    from segserve.results import Result
    from segserve.transports import TransportName
    from segserve.types import Encoding, ModelInfo

T = TypeVar("T")


class Client:
    """Calls the models behind one gateway; safe to share between threads, and keeps its connections.

    `url` is the gateway's, by default that of `SEGSERVE_URL`, else http://127.0.0.1:8080. `transport` grpc
    needs the extra `segserve[grpc]`. `timeout_s` is for a whole call, with its up to `retries` retries, which
    are made where the gateway cannot be reached or is overloaded, and nowhere else.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        transport: TransportName = "http",
        timeout_s: float = 30.0,
        retries: int = 2,
    ) -> None:
        self._session = Session(timeout_s, retries)
        self._transport = open_transport(transport, Endpoint.parse(url))

    def segment(
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
        """Segment one image: the result that belongs to the model's task.

        `image` is a path, the bytes of a file, an open binary file, a PIL image, or a uint8 (uint16 where the
        model takes it) array shaped (H, W, C) or (H, W). What is None is as the model's file says.
        `confidence` asks a semantic model for each class's mean probability, which costs it time. Raises a
        `SegserveError`, and `OSError` for a file that cannot be read.
        """
        options = SegmentOptions(model, score_threshold, max_detections, encoding, confidence, timeout_s)
        return self._run(self._session.segment(image_tensor(image), options))

    def model_info(self, model: str) -> ModelInfo:
        """Return what is served under a name now: revision, classes, outputs."""
        return self._run(self._session.model_info(model))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = self._transport.send(step.request, step.timeout_s)
                except SegserveError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            value: T = end.value
            return value
