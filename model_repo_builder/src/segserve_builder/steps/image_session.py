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
"""Time from which on an image does not take the last place."""
PATIENCE_S: Final = 2.0
"""Time that such an image waits for another place, from the moment when there is none."""
_LIKE: Final = 0.8
"""Fraction of the largest image's pixels from which on an image says how long the largest takes."""


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
    """Keeps the last of some places free of images that take long, so that no caller's images keep others waiting.

    How long an image takes follows from its pixels and the time of the largest one so far. `clock` returns seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._changed = threading.Condition()
        self._most_long = max(most - 1, 1)
        self._clock = clock
        self._largest, self._largest_s = 1, 0.0
        self._long, self._full_since_s = 0, 0.0

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Take a place for an image, once there is one; raises `BusyError` if none becomes free in time."""
        expected_s = self._largest_s * pixels / self._largest
        is_long = expected_s > LONG_S
        if is_long:
            self._take(pixels, expected_s)
        began_s = self._clock()
        try:
            yield
            if pixels >= _LIKE * self._largest:
                self._largest_s = (self._clock() - began_s) * max(1.0, self._largest / pixels)
                self._largest = max(self._largest, pixels)
        finally:
            if is_long:
                with self._changed:
                    self._long -= 1
                    self._changed.notify()

    def _take(self, pixels: int, expected_s: float) -> None:
        with self._changed:
            # All images without a place wait for the same time together: each would keep others waiting for as long.
            patience_s = (
                self._full_since_s + PATIENCE_S - self._clock() if self._long == self._most_long else PATIENCE_S
            )
            if not self._changed.wait_for(lambda: self._long < self._most_long, max(patience_s, 0.0)):
                raise BusyError(
                    f"{BUSY}: one of {pixels} pixels takes about {expected_s:.0f} s, and {self._long} are computed; "
                    "try again later"
                )
            self._long += 1
            if self._long == self._most_long:
                self._full_since_s = self._clock()
