"""Messages about rollouts, and their JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias

from segserve_common.http.guard import send_async, single_use_transport
from segserve_common.http.urls import AddressCheck, Url
from segserve_operator.core.drift.watch import DriftedHistogram

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Secret:
    """A key of a Kubernetes Secret that holds a URL."""

    namespace: str
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Target:
    """A receiver of messages, by its URL or by the Secret that holds the URL.

    A URL may itself be secret: only its host is ever logged.
    """

    url: str = ""
    secret: Secret | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """An event of a rollout. `sequence` is the rollout state's, `at_s` Unix time, `url` the model's URL.

    `phase` is the phase's label, `weight` the percentage of requests that the candidate gets. One about drift has no
    `rollout`, and the `histograms` that drift, with their numbers.
    """

    model: str
    namespace: str
    rollout: str
    sequence: int
    revision: str
    phase: str
    weight: int
    reason: str
    message: str
    at_s: float
    url: str = ""
    histograms: tuple[DriftedHistogram, ...] = ()

    @property
    def id(self) -> str:
        """The key by which receivers recognise a message that is sent again.

        It includes the time because a hold that ends and begins again is not a decision, and keeps the sequence.
        """
        return f"{self.namespace}/{self.rollout or self.model}/{self.sequence}/{self.reason}/{int(self.at_s)}"


def as_json(message: Message) -> Json:
    """Return the payload of a message."""
    histograms = {"histograms": list(map(_plain, message.histograms))} if message.histograms else {}
    return {
        "id": message.id,
        "model": message.model,
        "namespace": message.namespace,
        "rollout": message.rollout,
        "revision": message.revision,
        "phase": message.phase,
        "weight": message.weight,
        "reason": message.reason,
        "message": message.message,
        "at": datetime.fromtimestamp(message.at_s, UTC).isoformat().replace("+00:00", "Z"),
        "url": message.url,
        **histograms,
    }


def _plain(histogram: DriftedHistogram) -> Json:
    of_slice = {"slice": histogram.slice} if histogram.slice else {}
    return asdict(histogram) | {"name": histogram.histogram} | of_slice


class Post(Protocol):
    """A sender of messages."""

    async def __call__(self, url: str, payload: Mapping[str, Any], timeout_s: float) -> int:
        """Post JSON and return the status of the response.

        Raises `RefusedError` or `UrlError` for a receiver that must not be called, and `OSError` or `httpx.HTTPError`
        if there is no response within `timeout_s`.
        """


def direct_post(check_address: AddressCheck) -> Post:
    """Return what posts to the addresses that `check_address` allows.

    Redirects are not followed, proxies not used, and the body of the response is not read: it could be endless.
    """

    async def post(url: str, payload: Mapping[str, Any], timeout_s: float) -> int:
        target = Url.normalised(url)
        # A transport and not a client: clients log whole URLs, which may be secret.
        async with asyncio.timeout(timeout_s), single_use_transport(target) as transport:
            response = await send_async(transport, "POST", target, check_address, {}, timeout_s, json=payload)
            await response.aclose()
        return response.status_code

    return post
