"""Messages about rollouts, and their JSON in each format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

Json: TypeAlias = dict[str, Any]
Format: TypeAlias = Literal["json", "slack"]

SLACK_TEXT: Final = 2900
"""Slack refuses a block whose text has more than 3,000 characters."""

_EMOJI: Final[Mapping[str, str]] = {
    "RolledBack": ":rotating_light:",
    "Quarantined": ":warning:",
    "Held": ":hourglass:",
    "DeadlinePassed": ":hourglass:",
    "SplitNotAsWritten": ":warning:",
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

    A URL may itself be secret: only its host is ever logged.
    """

    url: str = ""
    format: Format = "json"
    secret: Secret | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """An event of a rollout. `sequence` is the rollout state's, `at_s` Unix time, `url` the model's URL.

    `phase` is the phase's label, `weight` the percentage of requests that the candidate gets.
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

    @property
    def id(self) -> str:
        """The key by which receivers recognise a message that is sent again.

        It includes the time because a hold that ends and begins again is not a decision, and keeps the sequence.
        """
        return f"{self.namespace}/{self.rollout}/{self.sequence}/{self.reason}/{int(self.at_s)}"


def as_json(message: Message) -> Json:
    """Return the payload of the format json."""
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
    }


def as_slack(message: Message) -> Json:
    """Return the payload of a Slack incoming webhook."""
    place = f"{message.namespace}/{message.model}" if message.namespace else message.model
    head = f"{_EMOJI.get(message.reason, ':arrow_forward:')} *{_escaped(place)}* {_escaped(message.reason)}"
    body = _escaped(message.message)
    foot = f"rollout {message.rollout}, {message.phase}, {message.weight} % of requests, {message.id}"
    return {
        "text": f"{place}: {message.reason}: {body}"[:SLACK_TEXT],
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": f"{head}\n{body}"[:SLACK_TEXT]}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": _escaped(foot)[:SLACK_TEXT]}]},
        ],
    }


FORMATS: Final[Mapping[Format, Callable[[Message], Json]]] = {"json": as_json, "slack": as_slack}


def _escaped(text: str) -> str:
    """Return text in which Slack finds neither links nor mentions."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
