"""Messages between the operator and its worker: a line of JSON each way, one request a connection.

Either side may be taken over by what tenants send, so each reads the other's line with a bound and a schema.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from segserve_operator.adapters.checks.context import Question

MAX_REQUEST: Final = 128 * 1024
"""Bytes of a request: the longest query of a gate has 4 KiB, a notification about 8."""

MAX_RESPONSE: Final = 8 * 1024
MAX_TEXT: Final = 500
_CREDENTIALS: Final = struct.Struct("3i")
_STRICT: Final = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to send a gate's question."""

    __pydantic_config__ = _STRICT
    question: Question
    kind: Literal["ask"] = "ask"


@dataclass(frozen=True, slots=True)
class SendMessage:
    """A request to send a notification."""

    __pydantic_config__ = _STRICT
    url: str
    payload: Mapping[str, Any]
    timeout_s: float
    kind: Literal["send"] = "send"


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a question."""

    __pydantic_config__ = _STRICT
    status: Annotated[int, Field(ge=100, le=599)]
    values: tuple[FiniteFloat, FiniteFloat] | None = None
    kind: Literal["answered"] = "answered"


@dataclass(frozen=True, slots=True)
class Sent:
    """The status of a receiver's response."""

    __pydantic_config__ = _STRICT
    status: Annotated[int, Field(ge=100, le=599)]
    kind: Literal["sent"] = "sent"


@dataclass(frozen=True, slots=True)
class Failed:
    """Why there is no answer or status: `refused` and `url` are for good, `transient` may pass."""

    __pydantic_config__ = _STRICT
    reason: Literal["check", "refused", "url", "transient"]
    text: Annotated[str, Field(max_length=MAX_TEXT)]
    kind: Literal["failed"] = "failed"


Request: TypeAlias = Ask | SendMessage
Response: TypeAlias = Answered | Sent | Failed
REQUESTS: Final[TypeAdapter[Request]] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])
RESPONSES: Final[TypeAdapter[Response]] = TypeAdapter(Annotated[Response, Field(discriminator="kind")])


def shortened(text: str) -> str:
    """Return a text as one printable line of bounded length."""
    line = " ".join(text.split())[: MAX_TEXT + 1]
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def user_at(connection: socket.socket) -> int:
    """Return the user of the process at the other end of a Unix socket, as the kernel reports it."""
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user)
