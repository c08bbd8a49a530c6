"""Sends messages in the background: each target has a queue of its own, so that none waits for another."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

import httpx

from segserve_operator.adapters.notify.addresses import RefusedAddressError, resolved
from segserve_operator.adapters.notify.messages import FORMATS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from segserve_operator.adapters.notify.messages import Message, Secret, Target

TIMEOUT_S: Final = 5.0
PAUSES_S: Final = (1.0, 4.0)
"""Before the second try and the third, which is the last."""

WAITING: Final = 64
"""So many messages wait for a target that is slow; of more, the oldest are dropped."""

_PORTS: Final = {"http": 80, "https": 443}
_LATER: Final = frozenset({408, 425, 429})

log = logging.getLogger("segserve")


class _TryAgainError(Exception):
    """A try failed by what may be over soon."""


class _GivenUpError(Exception):
    """A try failed in a way that another would repeat."""


class SecretError(Exception):
    """A URL could not be read where it is said to be; the text says why."""


def _ignore(outcome: str) -> None:
    """Tell nobody."""


async def _unreadable(secret: Secret) -> str:
    raise SecretError(f"secretRef {secret.name!r}: there are Secrets on clusters alone")


class Notifier:
    """Posts messages, in their order for each target. `loopback` allows targets on this machine.

    A message arrives at least once where its target answers with 2xx within three tries, and is lost where the process
    ends before: nothing is kept on disk, and nothing is told again after a restart. Redirects are not followed, proxies
    not used. `read` gets URLs out of Secrets, and raises `SecretError`. `counts` has what became of messages: `sent`,
    `failed`, `refused` or `dropped`; `on_outcome` is told of each.
    """

    def __init__(
        self,
        *,
        loopback: bool,
        on_outcome: Callable[[str], None] = _ignore,
        read: Callable[[Secret], Awaitable[str]] = _unreadable,
        timeout_s: float = TIMEOUT_S,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._on_outcome, self._read = on_outcome, read
        self._loopback, self._timeout_s, self._pauses_s = loopback, timeout_s, tuple(pauses_s)
        self._waiting: dict[Target, deque[Message]] = {}
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        # No client: those log URLs whole. A connection is for one message, for two names may have one address, but
        # not one certificate.
        self._transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def send(self, targets: Iterable[Target], message: Message) -> None:
        """Take a message for some targets, and return at once; must be called within a running event loop."""
        for target in targets:
            queue = self._waiting.setdefault(target, deque())
            queue.append(message)
            if len(queue) > WAITING:
                queue.popleft()
                self._count("dropped")
            if target not in self._tasks:
                self._tasks[target] = asyncio.create_task(self._empty(target), name="notify")

    async def idle(self) -> None:
        """Wait until everything was sent or given up."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def aclose(self, grace_s: float = 1.0) -> None:
        """Send for a little longer what waits, and give up the rest."""
        tasks = tuple(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._transport.aclose()

    async def _empty(self, target: Target) -> None:
        queue = self._waiting[target]
        try:
            while queue:
                self._count(await self._deliver(target, queue.popleft()))
        finally:
            self._waiting.pop(target, None)
            self._tasks.pop(target, None)

    def _count(self, outcome: str) -> None:
        self.counts[outcome] += 1
        self._on_outcome(outcome)

    async def _deliver(self, target: Target, message: Message) -> str:
        """Return what became of a message: sent, failed or refused."""
        why = ""
        for pause_s in (*self._pauses_s, None):
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._post(target, message)
                return "sent"
            except RefusedAddressError as error:
                log.warning("notification %s: not sent: %s", message.id, error)
                return "refused"
            except (_GivenUpError, UnicodeError) as error:  # the latter: no name that could be looked up
                why = str(error)
                break
            except (_TryAgainError, SecretError, httpx.HTTPError, OSError, TimeoutError) as error:
                why = str(error) or type(error).__name__
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        log.warning("notification %s: %s: %s", message.id, _host(target), why)
        return "failed"

    async def _post(self, target: Target, message: Message) -> None:
        """Make one try; the connection goes to the very address that was examined."""
        url = _url(target.url if target.secret is None else (await self._read(target.secret)).strip())
        address = await resolved(url.host, url.port or _PORTS[url.scheme], loopback=self._loopback)
        request = httpx.Request(
            "POST",
            url.copy_with(host=address),
            json=FORMATS[target.format](message),
            headers={"Host": url.netloc.decode("ascii"), "User-Agent": "segserve"},
            extensions={"sni_hostname": url.host, "timeout": httpx.Timeout(self._timeout_s).as_dict()},
        )
        answer = await self._transport.handle_async_request(request)
        await answer.aclose()  # what it says is not read: it could be endless
        if answer.status_code in _LATER or answer.is_server_error:
            raise _TryAgainError(f"answered {answer.status_code}")
        if not answer.is_success:
            raise _GivenUpError(f"answered {answer.status_code}; 2xx is wanted, and redirects are not followed")


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise _GivenUpError(f"no URL: {error}") from error
    if url.scheme not in _PORTS or not url.host or url.userinfo:
        raise _GivenUpError(f"scheme {url.scheme!r}; allowed are http and https, a host, and no credentials before it")
    return url


def _host(target: Target) -> str:
    if target.secret is not None:
        return f"secret {target.secret.name}"
    try:
        return httpx.URL(target.url).host
    except httpx.InvalidURL:
        return "?"
