"""Access to the page: loopback names alone, a token that becomes a cookie, no request from another site."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES: Final = 24
SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    # The address of the first request has the token in it.
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
# Not a redirect: a browser leaves a strict cookie out of redirects that another site's link began.
ENTERED: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>segserve</title>'
    '<meta http-equiv="refresh" content="0;url=/"><p><a href="/">Continue</a></p></html>'
)


@dataclass(slots=True)
class PageAccess:
    """The secrets of one server at a port: they live as long as its process.

    `token` is in the printed URL. A ticket opens the page once: it is in the command line of the browser that is
    started, which other users of the machine can read.
    """

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(TOKEN_BYTES), repr=False)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(TOKEN_BYTES), repr=False)
    _tickets: set[str] = field(default_factory=set, repr=False)

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins at which a browser may have the page."""
        return tuple(f"http://{host}" for host in self.hosts)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The values of `Host` that lead here: any other is a name that another site has pointed to loopback."""
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"

    @property
    def cookie(self) -> str:
        """The cookie's name: browsers send cookies to all ports of a host, so that each needs a name of its own."""
        return f"segserve-ui-{self.port}"

    @property
    def url(self) -> str:
        """The URL for a person."""
        return f"{self.origins[0]}/?token={self.token}"

    def ticket_url(self) -> str:
        """Return a URL that opens the page once."""
        ticket = secrets.token_urlsafe(TOKEN_BYTES)
        self._tickets.add(ticket)
        return f"{self.origins[0]}/?token={ticket}"

    def admits(self, token: str) -> bool:
        """Return whether a token opens the page; a ticket is spent by that."""
        spent = next(
            (ticket for ticket in self._tickets if secrets.compare_digest(ticket.encode(), token.encode())), None
        )
        if spent is not None:
            self._tickets.discard(spent)
        return spent is not None or secrets.compare_digest(self.token.encode(), token.encode())

    def has_session(self, cookie_header: str) -> bool:
        """Return whether a request's cookies are those of somebody who had the token."""
        try:
            found = SimpleCookie(cookie_header).get(self.cookie)
        except CookieError:
            return False
        return found is not None and secrets.compare_digest(found.value.encode(), self.session.encode())


class Guard:
    """ASGI middleware that lets nothing in but requests of the page itself, and adds the headers of security."""

    def __init__(self, app: ASGIApp, access: PageAccess) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, exchange a token for the cookie, or pass the request on."""
        if scope["type"] != "http":
            return  # nothing here speaks WebSocket
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(scope["method"], headers)
        if refused is not None:
            await _answer(send, 403, json.dumps({"error": refused}), "application/json")
            return
        tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["path"] == "/" and tokens and self._access.admits(tokens[0]):
            access = self._access
            cookie = f"{access.cookie}={access.session}; Path=/; HttpOnly; SameSite=Strict"
            await _answer(send, 200, ENTERED, "text/html; charset=utf-8", (b"set-cookie", cookie.encode()))
            return
        if not self._access.has_session(headers.get("cookie", "")):
            text = "open the address that `segserve ui` printed: it has the token which this page needs"
            await _answer(send, 401, json.dumps({"error": text}), "application/json")
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in HEADERS}
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in own]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        await self._app(scope, receive, guarded)

    def _refusal(self, method: str, headers: dict[str, str]) -> str | None:
        """Return why a request is not the page's own, or None."""
        hosts, host = self._access.hosts, headers.get("host", "")
        if host not in hosts:
            return f"this page is at {' and '.join(hosts)}, got a request for {host!r}"
        origin = headers.get("origin")
        if origin is not None and origin not in self._access.origins:
            return f"requests from {origin!r} are refused: only this page itself may send them"
        if method not in SAFE_METHODS and origin is None:
            return "a request that changes something must have an Origin, as browsers send it"
        return None


async def _answer(send: Send, status: int, body: str, kind: str, *more: tuple[bytes, bytes]) -> None:
    content = body.encode()
    own = ((b"content-type", kind.encode()), (b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*own, *HEADERS, *more]})
    await send({"type": "http.response.body", "body": content})
