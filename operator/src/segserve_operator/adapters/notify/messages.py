"""Messages about rollouts, and their JSON in each format."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol, TypeAlias

from segserve_common.http.guard import send_async, single_use_transport
from segserve_common.http.urls import AddressCheck, Url
from segserve_operator.core.drift.watch import DriftedHistogram

Json: TypeAlias = dict[str, Any]
Format: TypeAlias = Literal["json", "slack", "otlp"]

SLACK_TEXT: Final = 2900
"""Slack refuses a block whose text has more than 3,000 characters."""

_INTERNAL_SPAN: Final = 1
_FAILURES: Final = frozenset({"RolledBack", "Quarantined"})
"""Reasons of decisions against a candidate."""
_STATUS_ERROR: Final = 2

_EMOJI: Final[Mapping[str, str]] = {
    "RolledBack": ":rotating_light:",
    "Quarantined": ":warning:",
    "Held": ":hourglass:",
    "DeadlinePassed": ":hourglass:",
    "Succeeded": ":white_check_mark:",
}


@dataclass(frozen=True, slots=True)
class Secret:
    """A key of a Kubernetes Secret that holds a URL."""

    namespace: str
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Target:
    """A receiver of messages in one format, by its URL or by the Secret that holds the URL.

    A URL may itself be secret: only its host is ever logged. `ca_bundle` has the authorities of an https receiver, as
    PEM; by default they are the public ones.
    """

    url: str = ""
    format: Format = "json"
    secret: Secret | None = None
    ca_bundle: str | None = None


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
    """Return the payload of the format json."""
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


def as_slack(message: Message) -> Json:
    """Return the payload of a Slack incoming webhook."""
    place = f"{message.namespace}/{message.model}" if message.namespace else message.model
    head = f"{_EMOJI.get(message.reason, ':arrow_forward:')} *{_escaped(place)}* {_escaped(message.reason)}"
    body = _escaped(message.message)
    foot = f"rollout {message.rollout}, {message.phase}, {message.weight} % of requests, {message.id}"
    if not message.rollout:
        foot = f"{message.revision}, {message.id}"
    return {
        "text": f"{place}: {message.reason}: {body}"[:SLACK_TEXT],
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": f"{head}\n{body}"[:SLACK_TEXT]}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": _escaped(foot)[:SLACK_TEXT]}]},
        ],
    }


def as_otlp(message: Message) -> Json:
    """Return the payload of an OTLP/HTTP receiver: a span without duration.

    All spans of a rollout are one trace. A message that is sent again is the same span.
    """
    rollout = f"{message.namespace}/{message.model}/{message.rollout}"
    attributes: dict[str, str | int] = {
        "segserve.model": message.model,
        "segserve.revision": message.revision,
        "segserve.rollout": message.rollout,
        "segserve.phase": message.phase,
        "segserve.weight": message.weight,
        "segserve.reason": message.reason,
        "segserve.message": message.message,
        "k8s.namespace.name": message.namespace,
    }
    at_ns = str(round(message.at_s * 1e9))
    failure = {"status": {"code": _STATUS_ERROR, "message": message.message}} if message.reason in _FAILURES else {}
    span = {
        "traceId": hashlib.sha256(rollout.encode()).hexdigest()[:32],
        "spanId": hashlib.sha256(message.id.encode()).hexdigest()[:16],
        "name": f"{message.reason} {message.model}",
        "kind": _INTERNAL_SPAN,
        "startTimeUnixNano": at_ns,
        "endTimeUnixNano": at_ns,
        "attributes": [_attribute(name, value) for name, value in attributes.items() if value != ""],
        **failure,
    }
    scope = {"scope": {"name": "segserve"}, "spans": [span]}
    resource = {"attributes": [_attribute("service.name", "segserve-operator")]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}


def _attribute(name: str, value: str | int) -> Json:
    # As all 64-bit numbers of OTLP's JSON, it is a text.
    return {"key": name, "value": {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}}


FORMATS: Final[Mapping[Format, Callable[[Message], Json]]] = {"json": as_json, "slack": as_slack, "otlp": as_otlp}


def _escaped(text: str) -> str:
    """Return text in which Slack finds neither links nor mentions."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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
