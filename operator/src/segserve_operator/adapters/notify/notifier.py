"""Messages of rollouts' events, posted in the background.

Each target has a queue of its own, so that no target delays another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_chain, wait_fixed

from segserve_common.http.urls import RefusedError, UrlError
from segserve_operator.adapters.notify.messages import Message, Post, Secret, Target, as_json
from segserve_operator.api.triton_pool import TritonPoolSpec
from segserve_operator.core.models.actions import Announce, AnnounceDrift

TIMEOUT_S: Final = 5.0
DELAYS_S: Final = (1.0, 4.0)
"""Delays before the second attempt and the third, which is the last."""

MAX_QUEUED: Final = 64
"""Messages that wait for a slow target; beyond that the oldest are dropped."""

_TRANSIENT: Final = frozenset({408, 425, 429})

log = logging.getLogger("segserve")


class _TransientStatusError(Exception):
    """A response that may be another one soon."""


class _StatusError(Exception):
    """A response that another attempt would get again."""


class SecretError(Exception):
    """A URL that could not be read from its Secret; the text says why."""


async def _unreadable(secret: Secret) -> str:
    raise SecretError(f"secretRef {secret.name!r}: Secrets exist only on clusters")


class Notifier:
    """Sends messages by `post`, in order for each target.

    A message arrives at least once if its target answers with 2xx within three attempts, and is lost if the process
    ends before: nothing is kept on disk, and nothing is sent again after a restart. `read` returns URLs from Secrets,
    and raises `SecretError`. `counts` counts messages by outcome: `sent`, `failed`, `refused` or `dropped`;
    `on_outcome` is called with each.
    """

    def __init__(
        self,
        *,
        post: Post,
        on_outcome: Callable[[str], None] = lambda _: None,
        read: Callable[[Secret], Awaitable[str]] = _unreadable,
        timeout_s: float = TIMEOUT_S,
        delays_s: Sequence[float] = DELAYS_S,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._on_outcome, self._read = on_outcome, read
        self._send, self._timeout_s, self._delays_s = post, timeout_s, delays_s
        self._queues: dict[Target, deque[Message]] = {}
        self._tasks: dict[Target, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def send(self, targets: Iterable[Target], message: Message) -> None:
        """Queue a message for some targets, and return at once; must be called within a running event loop."""
        for target in targets:
            queue = self._queues.setdefault(target, deque())
            queue.append(message)
            if len(queue) > MAX_QUEUED:
                queue.popleft()
                self._count("dropped")
            if target not in self._tasks:
                self._tasks[target] = asyncio.create_task(self._drain(target), name="notify")

    async def idle(self) -> None:
        """Wait until all messages are sent or given up."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def aclose(self, grace_s: float = 1.0) -> None:
        """Continue for at most `grace_s`, and drop what is still queued."""
        tasks = tuple(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _drain(self, target: Target) -> None:
        queue = self._queues[target]
        try:
            while queue:
                self._count(await self._deliver(target, queue.popleft()))
        finally:
            self._queues.pop(target, None)
            self._tasks.pop(target, None)

    def _count(self, outcome: str) -> None:
        self.counts[outcome] += 1
        self._on_outcome(outcome)

    async def _deliver(self, target: Target, message: Message) -> str:
        """Return the outcome of a message: sent, failed or refused."""
        attempts = AsyncRetrying(
            retry=retry_if_exception_type((_TransientStatusError, SecretError, httpx.HTTPError, OSError)),
            wait=wait_chain(*map(wait_fixed, self._delays_s)),
            stop=stop_after_attempt(len(self._delays_s) + 1),
            reraise=True,
        )
        try:
            await attempts(self._post, target, message)
        except RefusedError as error:
            log.warning("notification %s: not sent: %s", message.id, error)
            return "refused"
        except (_TransientStatusError, _StatusError, UrlError, SecretError, httpx.HTTPError, OSError) as error:
            log.warning("notification %s: %s: %s", message.id, _shown(target), str(error) or type(error).__name__)
            return "failed"
        return "sent"

    async def _post(self, target: Target, message: Message) -> None:
        async with asyncio.timeout(self._timeout_s):
            url = target.url if target.secret is None else (await self._read(target.secret)).strip()
        status = await self._send(url, as_json(message), self._timeout_s)
        if status in _TRANSIENT or httpx.codes.is_server_error(status):
            raise _TransientStatusError(f"answered {status}")
        if not httpx.codes.is_success(status):
            raise _StatusError(f"answered {status}; expected 2xx, redirects are not followed")


def _shown(target: Target) -> str:
    """Return what a log may show of a target: a URL's host, as the rest may be secret."""
    if target.secret is not None:
        return f"secret {target.secret.name}"
    try:
        return httpx.URL(target.url).host
    except httpx.InvalidURL:
        return "?"


@dataclass(frozen=True, slots=True)
class PoolAnnouncer:
    """Sends the events of a pool's rollouts to its current targets. `clock` returns Unix time in seconds."""

    notifier: Notifier
    namespace: str
    targets: Callable[[], Collection[Target]]
    clock: Callable[[], float]

    def announce(self, announcement: Announce | AnnounceDrift) -> None:
        """Queue a message for each event, and return at once."""
        targets = self.targets()
        for message in self._messages(announcement) if targets else ():
            self.notifier.send(targets, message)

    def _messages(self, announcement: Announce | AnnounceDrift) -> Iterator[Message]:
        match announcement:
            case Announce(model, state, events, url):
                for event in events:
                    yield Message(
                        model=model,
                        namespace=self.namespace,
                        rollout=state.rollout,
                        sequence=state.sequence,
                        revision=state.revision,
                        phase=state.phase.label,
                        weight=state.weight,
                        reason=event.reason,
                        message=event.message,
                        at_s=self.clock(),
                        url=url,
                    )
            case AnnounceDrift(model, revision, event, histograms, url):
                yield Message(
                    model=model,
                    namespace=self.namespace,
                    rollout="",
                    sequence=0,
                    revision=revision,
                    phase="",
                    weight=100,
                    reason=event.reason,
                    message=event.message,
                    at_s=self.clock(),
                    url=url,
                    histograms=histograms,
                )


def targets(spec: TritonPoolSpec, namespace: str) -> tuple[Target, ...]:
    """Return the targets that a pool names; their Secrets are in the pool's own namespace."""
    return tuple(
        Target(each.url or "")
        if each.secret_ref is None
        else Target(secret=Secret(namespace, each.secret_ref.name, each.secret_ref.key))
        for each in spec.notifications
    )
