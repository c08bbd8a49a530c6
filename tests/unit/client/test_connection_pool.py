"""Kept connections: used again, closed when they have waited for long, and safe between threads."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from segserve.transports import pool
from segserve.transports.pool import AsyncConnectionPool, ConnectionPool, _Idle


def kept(monkeypatch: pytest.MonkeyPatch) -> tuple[_Idle[str], list[float]]:
    """Idle clients named by their number, and the clock that they are kept by."""
    clock = [0.0]
    names = iter("abcdefgh")
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return _Idle(lambda: next(names)), clock


def test_the_client_that_was_used_last_is_used_next(monkeypatch: pytest.MonkeyPatch) -> None:
    idle, _ = kept(monkeypatch)
    first, second = idle.take(), idle.take()

    assert (idle.give(second), idle.give(first)) == (None, None)
    assert [idle.take() for _ in range(3)] == ["a", "b", "c"]


def test_a_client_that_has_waited_for_too_long_is_handed_out_to_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    idle, clock = kept(monkeypatch)
    first, second = idle.take(), idle.take()
    idle.give(first)
    clock[0] = pool.KEEP_S + 1

    assert idle.give(second) == "a"
    assert list(idle.all()) == ["b"]
    assert list(idle.all()) == []


def test_a_client_that_is_given_back_may_be_taken_by_another_thread_at_any_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread asks for a client between the two steps of giving one back."""
    idle, _ = kept(monkeypatch)
    client = idle.take()
    taken: list[str] = []
    other = threading.Thread(target=lambda: taken.append(idle.take()))

    class Interrupted(deque[Any]):
        def append(self, item: Any) -> None:
            super().append(item)
            other.start()
            # It takes the client now, or it waits until `give` is done: then this is given up.
            other.join(0.1)

    idle._clients = Interrupted(idle._clients)
    old = idle.give(client)
    other.join()

    assert (old, taken) == (None, ["a"])


class Kept:
    """A connection that knows whether it was closed."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True


class AsyncKept:
    is_closed = False

    async def close(self) -> None:
        self.is_closed = True


async def test_a_connection_in_use_while_its_pool_is_closed_is_closed_after_its_request() -> None:
    connections, others = ConnectionPool(Kept, shared=False), AsyncConnectionPool(AsyncKept, shared=False)

    with connections.acquire(30) as one:
        connections.close()
        assert not one.is_closed
    async with others.acquire(30) as other:
        await others.close()
        assert not other.is_closed

    assert one.is_closed
    assert other.is_closed
