"""Downloads of single files: transient errors are retried, and a download resumes where it broke off."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from segserve_builder.errors import ArtifactMissingError, DigestMismatchError, SourceUnavailableError
from segserve_builder.sources.access import shown_digest
from segserve_builder.sources.base import Stream
from segserve_builder.sources.cache import PartialFile, check_size, chunks
from segserve_common.backoff import Backoff

Progress: TypeAlias = "Callable[[int, int | None], None]"
"""Called with the bytes so far and the size of the file, None if the source does not report it."""

_PROGRESS_BYTES: Final = 1024 * 1024
_BROKEN_OFF: Final = (ConnectionError, TimeoutError, ssl.SSLError)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts at a transient error, with the delays between them; progress of a megabyte starts the count again."""

    tries: int = 5
    first_s: float = 0.5
    longest_s: float = 30.0

    def delay_s(self, failures: int, retry_after_s: float | None) -> float | None:
        """Return the delay before the next attempt; None to give up, also if the server requires a longer delay."""
        if failures >= self.tries or (retry_after_s or 0) > self.longest_s:
            return None
        backoff = Backoff(self.first_s, self.longest_s, jitter=(0.5, 1.0))
        return max(backoff.delay_s(failures), retry_after_s or 0)


class OpenAt(Protocol):
    """Opens a file at a byte, as `ArtifactSource.open` does."""

    def __call__(self, start: int, /) -> AbstractContextManager[Stream]:
        """Open the file at the byte `start`."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file to download; `uri` names it in messages."""

    uri: str
    open: OpenAt
    max_bytes: int
    retry_policy: RetryPolicy = RetryPolicy()
    progress: Progress | None = None

    def verified(self, part: PartialFile, sha256: str) -> None:
        """Fill `part` with the bytes of that digest.

        Raises what opening raises, `ArtifactTooLargeError` and `DigestMismatchError`; only a transient error keeps the
        bytes for a later attempt.
        """
        if part.sha256 == sha256:
            return  # a process was stopped between the last byte and the commit
        try:
            self.into(part)
            if part.sha256 != sha256 and part.is_resumed:
                # The resumed beginning was of another file, or did not survive a crash.
                part.restart(None)
                self.into(part)
            if part.sha256 != sha256:
                raise DigestMismatchError(self.uri, sha256, shown_digest(part.sha256))
        except SourceUnavailableError:
            raise
        except Exception:
            part.restart(None)
            raise

    def into(self, part: PartialFile) -> None:
        """Fill `part` with the whole file, whatever its digest."""
        failures = 0
        while True:
            before = part.size
            try:
                self._receive(part)
                return
            except SourceUnavailableError as error:
                failures = 1 if part.size - before >= _PROGRESS_BYTES else failures + 1
                delay_s = self.retry_policy.delay_s(failures, error.retry_after_s)
                if delay_s is None:
                    raise
                time.sleep(delay_s)

    def _receive(self, part: PartialFile) -> None:
        start = part.size if part.identity is not None else 0
        with ExitStack() as stack:
            stream = self._opened(start, stack)
            resumes = start > 0 and stream.start == start and stream.identity == part.identity
            if resumes or stream.start == 0:
                if resumes:
                    part.is_resumed = True
                else:
                    part.restart(stream.identity)
                self._copy(stream, part)
                return
        if start == 0:
            raise ArtifactMissingError(f"{self.uri!r} is sent from byte {stream.start}; requested was the whole file")
        # The file has changed, and these are not its first bytes.
        part.restart(None)
        self._receive(part)

    def _opened(self, start: int, stack: ExitStack) -> Stream:
        """Open the file; for one in an archive this reads all before it, which may break off as well."""
        try:
            return stack.enter_context(self.open(start))
        except _BROKEN_OFF as error:
            raise SourceUnavailableError(f"{self.uri!r} broke off: {error}") from error

    def _copy(self, stream: Stream, part: PartialFile) -> None:
        check_size(stream.size or 0, self.uri, self.max_bytes)
        for chunk in chunks(stream, self.uri):
            check_size(part.size + len(chunk), self.uri, self.max_bytes)
            part.write(chunk)
            if self.progress is not None:
                self.progress(part.size, stream.size)
        if stream.size is not None and part.size < stream.size:
            raise SourceUnavailableError(f"{self.uri!r} broke off: {part.size} of {stream.size} bytes were received")
