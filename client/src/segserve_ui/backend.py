"""The platform behind the page: models and their gateways, used as the command line and the client use them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from segserve.calls.endpoint import URL_VARIABLE
from segserve.client import Client
from segserve.errors import GatewayUnreachableError
from segserve.platform import PlatformRef
from segserve.results.images import ImageLike
from segserve.results.objects import InstanceResult
from segserve.results.result import Result
from segserve_common.errors import SegserveError
from segserve_operator.api.triton_pool import TritonPoolSpec
from segserve_platform.evaluation.pairs import agreement_of, class_name, common_classes
from segserve_platform.platforms.errors import NoPlatformError
from segserve_platform.platforms.local import LocalPlatform
from segserve_platform.platforms.metrics import MetricsSource
from segserve_platform.platforms.port import MODEL, Json, Platform
from segserve_ui.answers import GoneAnswerError
from segserve_ui.calls import Caller
from segserve_ui.prompts import PromptedImages, Prompts

if TYPE_CHECKING:
    from PIL.Image import Image

TIMEOUT_S: Final = 60.0
HEADROOM_BYTES: Final = 4096
"""Bytes of a request for what is sent beside the image."""
NOT_RUNNING: Final = "the platform is not running: `segserve up` starts it"
T = TypeVar("T")
OpenGateway = Callable[[str], AbstractContextManager[str | None]]


@dataclass(frozen=True, slots=True)
class UiPlatform:
    """A platform, where its metrics are read (None: nowhere), and what makes the gateway of a model reachable."""

    ref: PlatformRef
    platform: Platform
    open_gateway: OpenGateway
    metrics: MetricsSource | None


@dataclass(slots=True)
class _OpenGateway:
    stack: ExitStack
    url: str | None
    client: Client


class Backend:
    """The models' answers for the page. Thread-safe; gateways stay open until `close`."""

    def __init__(self, place: UiPlatform) -> None:
        self.place = place
        self._gateways: dict[str, _OpenGateway] = {}
        self._lock = threading.Lock()
        self._prompted = PromptedImages()

    def segment(
        self, model: str, image: ImageLike, score_threshold: float | None = None, frame: int | None = None
    ) -> tuple[Result, float]:
        """Return a model's answer, and how long it took in milliseconds; raises as `Client.segment` does.

        `frame` is the number of a video's frame, which is sent as a stream of its own: a scrubber jumps.
        """

        def answer(client: Client) -> Result:
            if frame is None:
                return client.segment(image, model=model, score_threshold=score_threshold)
            stream = client.segment_stream([(frame, image)], model=model, score_threshold=score_threshold)
            return next(iter(list(stream)))

        return self._with_gateway(model, lambda gateway: _timed(lambda: answer(gateway.client)))

    def compare(self, first: str, second: str, image: ImageLike) -> tuple[list[tuple[Result, float]], Json]:
        """Return the answers of two models to one image, and how much they agree, by class and over all.

        Raises `BadRequestError` if the answers cannot be compared.
        """
        names = common_classes(
            self._with_gateway(first, lambda gateway: gateway.client.model_info(first)),
            self._with_gateway(second, lambda gateway: gateway.client.model_info(second)),
        )
        sides = [self.segment(model, image) for model in (first, second)]
        found = agreement_of(sides[0][0], sides[1][0], names)
        classes = [{"class": class_name(number, names), "agreement": value} for number, value in found.classes.items()]
        only = [sum(found.stable_only), sum(found.candidate_only)]
        return sides, {"value": found.value, "classes": sorted(classes, key=_agreement), "only": only}

    def prompt(
        self, name: str, prompts: Prompts, model: str = "", content: bytes | Image = b""
    ) -> tuple[InstanceResult, float]:
        """Return the answer to all prompts of an object in an image, and how long it took in milliseconds.

        With a model the image is opened by the name, by which it is kept for further prompts. Raises
        `GoneAnswerError` if it was forgotten, and as `PromptedImage.click` does.
        """

        def answer(client: Client | None) -> InstanceResult:
            with self._prompted.taken(name, client, model, content) as image:
                return image.ask(*prompts.given, multimask=prompts.multimask)

        if not model:
            try:
                return _timed(lambda: answer(None))
            except GatewayUnreachableError as error:
                raise GoneAnswerError(f"open the image again: {error.message}") from error
        return self._with_gateway(model, lambda gateway: _timed(lambda: answer(gateway.client)))

    def pools(self) -> list[Json]:
        """Return the pools' manifests; none for a user that may send requests, but not read pools."""
        try:
            return self.place.platform.pools()
        except SegserveError:
            return []

    def caller(self, model: str, pools: Iterable[Json]) -> Caller:
        """Return how a program outside the page calls a model of one of these pools."""
        platform = self.place.platform
        ca_file = platform.ca_file() if isinstance(platform, LocalPlatform) else None
        key = self._key(model)
        spec = next((pool["spec"] or {} for pool in pools if pool["metadata"]["name"] == key), {})
        return Caller(
            self.place.ref,
            self._gateway(model).url,
            ca_file or None,
            has_key=bool(os.environ.get("SEGSERVE_API_KEY")),
            plain_http=(spec.get("gateway") or {}).get("plainHttp") is not False,
        )

    def close(self) -> None:
        """Close the connections and forwarded ports."""
        with self._lock:
            opened, self._gateways = self._gateways, {}
        for each in opened.values():
            each.stack.close()

    def _with_gateway(self, model: str, call: Callable[[_OpenGateway], T]) -> T:
        """Call with the gateway of a model; one that is gone is opened again: a platform may have restarted."""
        try:
            return call(self._gateway(model))
        except GatewayUnreachableError:
            key = self._key(model)
            with self._lock:
                dropped = self._gateways.pop(key, None)
            if dropped is not None:
                dropped.stack.close()
                self._prompted.forget()
            return call(self._gateway(model))

    def _gateway(self, model: str) -> _OpenGateway:
        key = self._key(model)
        with self._lock:
            if key not in self._gateways:
                stack = ExitStack()
                try:
                    url = stack.enter_context(self.place.open_gateway(model)) or os.environ.get(URL_VARIABLE)
                    if url is None and isinstance(self.place.platform, LocalPlatform):
                        raise NoPlatformError(NOT_RUNNING)  # the default URL was never this platform's
                    client = stack.enter_context(Client(url, timeout_s=TIMEOUT_S, platform=self.place.ref))
                except BaseException:
                    stack.close()
                    raise
                self._gateways[key] = _OpenGateway(stack, url, client)
            return self._gateways[key]

    def _key(self, model: str) -> str:
        """Return the pool of a model: models of one pool share a gateway, which on a cluster is a forwarded port."""
        manifest = self.place.platform.find(MODEL, model) or {}
        return str((manifest.get("spec") or {}).get("pool") or "default")


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began_s = time.perf_counter()
    return call(), 1000 * (time.perf_counter() - began_s)


def _agreement(row: Json) -> float:
    return float(row["agreement"])


def body_limit_bytes(pools: Iterable[Json]) -> int:
    """Return how large an image may be: what the largest of the pools' gateways takes, or the default one."""
    default = TritonPoolSpec().gateway.max_request_bytes
    gateways = ((pool.get("spec") or {}).get("gateway") or {} for pool in pools)
    return max((int(each.get("maxRequestBytes") or default) for each in gateways), default=default) - HEADROOM_BYTES
