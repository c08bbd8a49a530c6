"""Downloads one file: tries again what may pass, and goes on where it broke off."""

from __future__ import annotations

import random
import ssl
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from segserve_builder.errors import ArtifactMissingError, DigestMismatchError, SourceUnavailableError
from segserve_builder.sources.cache import check_size, chunks

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from segserve_builder.sources.base import Stream
    from segserve_builder.sources.cache import Arriving

Progress: TypeAlias = "Callable[[int, int | None], None]"
"""Is told how many bytes are there, and of how many; None where the source does not say."""

_WORTH_A_NEW_TRY: Final = 1024 * 1024
_BROKEN_OFF: Final = (ConnectionError, TimeoutError, ssl.SSLError)


@dataclass(frozen=True, slots=True)
class Retrying:
    """How often what may pass is tried, and with which pauses; a try that brought a megabyte is not counted."""

    tries: int = 5
    first_s: float = 0.5
    longest_s: float = 30.0

    def pause_s(self, failures: int, asked_s: float | None) -> float | None:
        """Return the pause before the next try; None where there is none, or the server asks for a longer one."""
        if failures >= self.tries or (asked_s or 0) > self.longest_s:
            return None
        most = min(self.longest_s, self.first_s * 2 ** (failures - 1))
        return max(random.uniform(most / 2, most), asked_s or 0)  # jitter, so that a pool's agents do not come at once


class Opened(Protocol):
    """Opens a file's bytes from a place on, as `Source.open` does."""

    def __call__(self, start: int, /) -> AbstractContextManager[Stream]:
        """Open them."""
        ...


@dataclass(frozen=True, slots=True)
class Download:
    """One file that is to be had; `uri` names it in messages."""

    uri: str
    open: Opened
    max_bytes: int
    retrying: Retrying = Retrying()
    progress: Progress | None = None

    def verified(self, part: Arriving, sha256: str) -> None:
        """Fill `part` with the bytes of that digest.

        Raises what opening does, `ArtifactTooLargeError` and `DigestMismatchError`; then nothing of it stays.
        """
        if part.sha256 == sha256:
            return  # whoever was stopped had all but named it
        try:
            self.into(part)
            if part.sha256 != sha256 and part.is_resumed:
                # The beginning was of other bytes after all, or did not survive a crash.
                part.restart(None)
                self.into(part)
            if part.sha256 != sha256:
                raise DigestMismatchError(self.uri, sha256, part.sha256)
        except SourceUnavailableError:
            raise
        except Exception:
            part.restart(None)
            raise

    def into(self, part: Arriving) -> None:
        """Fill `part` with all there is, whatever its digest."""
        failures = 0
        while True:
            before = part.size
            try:
                self._receive(part)
                return
            except SourceUnavailableError as error:
                failures = 1 if part.size - before >= _WORTH_A_NEW_TRY else failures + 1
                pause_s = self.retrying.pause_s(failures, error.retry_after_s)
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    def _receive(self, part: Arriving) -> None:
        start = part.size if part.identity is not None else 0
        with ExitStack() as stack:
            stream = self._opened(start, stack)
            goes_on = start > 0 and stream.start == start and stream.identity == part.identity
            if goes_on or stream.start == 0:
                if goes_on:
                    part.is_resumed = True
                else:
                    part.restart(stream.identity)
                self._copy(stream, part)
                return
        if start == 0:
            raise ArtifactMissingError(f"{self.uri!r} is given from byte {stream.start} on; asked for is all of it")
        # The bytes are others by now, and these are not their first.
        part.restart(None)
        self._receive(part)

    def _opened(self, start: int, stack: ExitStack) -> Stream:
        """Open the bytes; to find a file in an archive all that is before it is read, which may break off too."""
        try:
            return stack.enter_context(self.open(start))
        except _BROKEN_OFF as error:
            raise SourceUnavailableError(f"{self.uri!r} broke off: {error}") from error

    def _copy(self, stream: Stream, part: Arriving) -> None:
        check_size(stream.size or 0, self.uri, self.max_bytes)
        for chunk in chunks(stream, self.uri):
            check_size(part.size + len(chunk), self.uri, self.max_bytes)
            part.write(chunk)
            if self.progress is not None:
                self.progress(part.size, stream.size)
        if stream.size is not None and part.size < stream.size:
            raise SourceUnavailableError(f"{self.uri!r} broke off: {part.size} of {stream.size} bytes came")
