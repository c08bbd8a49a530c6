"""Access to the page: only loopback names, a token that the page's scripts send, no request from another site."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES: Final = 24
OPEN: Final = ("/static/", "/docs/", "/favicon.ico")
"""What any client may have, beside the page's frame: files of an open-source package."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass(slots=True)
class PageAccess:
    """The secret of one server at a port: it lives as long as its process.

    It is in the fragment of the printed URL, which browsers do not send. The page's scripts keep it for their tab and
    origin, and send it in a header: a cookie would go to all ports of this host, which other users may listen on.
    """

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(TOKEN_BYTES), repr=False)
    redirect: Path | None = None
    """The file that leads a browser here, if one was started: it ends with the server."""

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins at which a browser may have the page."""
        return tuple(f"http://{host}" for host in self.hosts)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The values of `Host` that lead here: any other is a name that another site has pointed to loopback."""
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"

    @property
    def url(self) -> str:
        """The URL for a person."""
        return f"{self.origins[0]}/#token={self.token}"

    @property
    def authorization(self) -> str:
        """The value of the header `Authorization` of a client with the token."""
        return f"Bearer {self.token}"


class Guard:
    """ASGI middleware that lets nothing in but requests of the page itself, and adds the headers of security."""

    def __init__(self, app: ASGIApp, access: PageAccess) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and pass it on."""
        if scope["type"] != "http":
            return  # nothing here speaks WebSocket
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refused := self._refusal(headers):
            await _answer(send, 403, refused)
            return
        given, wanted = headers.get("authorization", ""), self._access.authorization
        is_open = scope["path"] == "/" or scope["path"].startswith(OPEN)
        if not is_open and not secrets.compare_digest(given.encode(), wanted.encode()):
            text = "open the address that `segserve ui` printed: it has the token which this page needs"
            await _answer(send, 401, text)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in HEADERS}
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in own]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        await self._app(scope, receive, guarded)

    def _refusal(self, headers: dict[str, str]) -> str | None:
        """Return why a request is not the page's own, or None."""
        hosts, host = self._access.hosts, headers.get("host", "")
        if host not in hosts:
            return f"this page is at {' and '.join(hosts)}, got a request for {host!r}"
        origin = headers.get("origin")
        if origin is not None and origin not in self._access.origins:
            return f"requests from {origin!r} are refused: only this page itself may send them"
        return None


async def _answer(send: Send, status: int, text: str) -> None:
    content = json.dumps({"error": text}).encode()
    own = ((b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*own, *HEADERS]})
    await send({"type": "http.response.body", "body": content})
