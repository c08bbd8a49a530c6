"""A network for images beside each other in one process: one alone has all cores, more have one each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.cpus import available_cpus
from segserve_builder.errors import BUSY, BusyError
from segserve_builder.memory import is_out_of_memory, return_freed_memory
from segserve_builder.steps.session import NetworkSession, WeightsAllowance
from segserve_builder.steps.step_options import NetOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SUCCESSES: Final = 64
"""Images after which one more runs beside the others again."""
LONG_S: Final = 1.0
"""Time from which on work does not take the last place."""
PATIENCE_S: Final = 2.0
"""Time that such work waits for another place, from the moment when there is none."""
_LIKE: Final = 0.8
"""Fraction of the largest size from which on work says how long the largest of its kind takes."""


class ImageSession:
    """Runs a network over one image at a time in each thread. The session of one thread is opened when it is needed."""

    def __init__(self, path: Path, options: NetOptions) -> None:
        """Load the file; raises as `NetworkSession` does."""
        self._path, self._cores = path, available_cpus()
        self._options = options.model_copy(update={"intra_op_threads": 1})
        self._wide = NetworkSession(path, options, apart=False)
        self._narrow: NetworkSession | None = None
        self._opening = threading.Lock()
        self._allowance = WeightsAllowance(path)
        self._is_too_large = False

    def run(self, image: NDArray[Any], running: int, extra: Sequence[NDArray[Any]] = ()) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for one image, while so many run.

        `image` and `extra` are as for `NetworkSession.run`. Raises `InputMemoryError` if memory did not suffice
        for such an image alone, and another `MemoryError` if it does not for all that run.
        """
        self._wide.check_size(image)
        few = self._cores == 1 or 2 * running <= self._cores
        session = self._wide if few else self._of_one_thread() or self._wide
        return session.run_beside_others(image, extra)

    def run_alone(self, image: NDArray[Any], extra: Sequence[NDArray[Any]] = ()) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for one image while no other runs; raises `MemoryError`."""
        return self._wide.run(image, extra)

    def close(self) -> None:
        """Give all memory back until the next run; no image may run."""
        self._narrow = None
        self._wide.close()
        return_freed_memory()

    def _of_one_thread(self) -> NetworkSession | None:
        # Images that arrive while it is opened do not wait.
        if self._narrow is None and not self._is_too_large and self._opening.acquire(blocking=False):
            try:
                if self._narrow is None:
                    self._narrow = self._opened()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._is_too_large = True
            finally:
                self._opening.release()
        return self._narrow

    def _opened(self) -> NetworkSession:
        with self._allowance.given():
            return NetworkSession(self._path, self._options)


class Turns:
    """Lets images run beside each other while memory suffices, and by itself one that it did not suffice for."""

    def __init__(self, most: int) -> None:
        self._changed = threading.Condition()
        self._most = self._allowed = most
        self._running = self._alone = self._successes = 0

    @contextmanager
    def beside(self) -> Iterator[int]:
        """Wait for a turn beside others, and give how many run; after a `MemoryError` fewer may."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and self._running < self._allowed)
            self._running += 1
            running = self._running
        try:
            yield running
        except Exception as error:
            with self._changed:
                # One that ran by itself says nothing of those beside others.
                if is_out_of_memory(error) and self._running > 1:
                    self._allowed = max(min(self._allowed, self._running) - 1, 1)
                    self._successes = 0
            raise
        else:
            with self._changed:
                self._successes += 1
                if self._allowed < self._most and self._successes >= _SUCCESSES:
                    self._allowed, self._successes = self._allowed + 1, 0
        finally:
            self._end()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other runs; images that arrive meanwhile wait."""
        with self._changed:
            self._alone += 1
            try:
                self._changed.wait_for(lambda: not self._running)
            except BaseException:
                self._alone -= 1
                raise
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._alone -= 1
            self._end()

    def _end(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()


class Places:
    """Keeps the last of some places free of work that takes long, so that no caller's requests keep others waiting.

    How long work takes follows from its size and the time of the largest of its kind so far: the proof of a revision
    measures each kind before callers come. `clock` returns seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._changed = threading.Condition()
        self._most_long = max(most - 1, 1)
        self._clock = clock
        self._largest: dict[str, tuple[int, float, float]] = {}
        """By kind of work its largest size, the time of that, and how short the next measure may make it."""
        self._long, self._full_since_s = 0, 0.0

    @contextmanager
    def taken(self, size: int, kind: str = "pixels") -> Iterator[Place]:
        """Take a place for a request's first work, of so many `kind`; waits and raises as `Place.take` does."""
        place = Place(self)
        place.take(size, kind)
        try:
            yield place
        except BaseException:
            place.leave(has_failed=True)
            raise
        place.leave()

    def _take(self, work: str, expected_s: float) -> None:
        with self._changed:
            # All that are without a place wait for the same time together: each would keep others waiting for as long.
            patience_s = (
                self._full_since_s + PATIENCE_S - self._clock() if self._long == self._most_long else PATIENCE_S
            )
            if not self._changed.wait_for(lambda: self._long < self._most_long, max(patience_s, 0.0)):
                takes = f"one of {work} takes about {expected_s:.0f} s"
                raise BusyError(f"{BUSY}: {takes}, and {self._long} are computed; try again later")
            self._long += 1
            if self._long == self._most_long:
                self._full_since_s = self._clock()

    def _leave(self) -> None:
        with self._changed:
            self._long -= 1
            self._changed.notify()


class Place:
    """The place of one request among `Places`, for one kind of work after the other."""

    def __init__(self, places: Places) -> None:
        self._places, self._is_long = places, False
        self._size, self._kind, self._expected_s, self._began_s = 0, "", 0.0, 0.0

    def take(self, size: int, kind: str) -> None:
        """End the work so far, and take a place for what comes next; raises `BusyError` if none is free in time."""
        self._measure(has_failed=False)
        places = self._places
        largest, largest_s, _ = places._largest.get(kind, (1, 0.0, 0.0))
        expected_s = largest_s * size / largest if size else 0.0
        is_long = expected_s > LONG_S
        if is_long and not self._is_long:
            places._take(f"{size} {kind}", expected_s)
        elif self._is_long and not is_long:
            places._leave()
        self._is_long, self._size, self._kind, self._expected_s = is_long, size, kind, expected_s
        self._began_s = places._clock()

    def leave(self, *, has_failed: bool = False) -> None:
        """End the work."""
        self._measure(has_failed)
        if self._is_long:
            self._places._leave()

    def forget(self) -> None:
        """Measure nothing of the work so far, as it was known already."""
        self._size = 0

    def _measure(self, has_failed: bool) -> None:
        places, size = self._places, self._size
        known = places._largest.get(self._kind)
        largest, largest_s, least_s = known or (1, 0.0, 0.0)
        took_s = places._clock() - self._began_s
        # What fails early says nothing, and one that is quick not that all are.
        if size >= _LIKE * largest and not (has_failed and took_s < self._expected_s):
            found_s = max(took_s * max(1.0, largest / size), least_s)
            # One that got no core for a while does not say that all take so long.
            if known and size <= largest:
                found_s = min(found_s, max(2 * largest_s, LONG_S / 4))
            # The first one has also started what it needs. Images do not differ in what is computed of a pixel.
            halved_s = found_s / 2 if known and self._kind != "pixels" else 0.0
            places._largest[self._kind] = max(largest, size), found_s, halved_s
        self._size = 0
