"""The builder's errors; `reason` is the CamelCase word that a condition shows."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final


class BuilderError(Exception):
    """A pipeline, an artifact or an image cannot be used; the message says what was observed and what is allowed."""

    reason: ClassVar[str] = "BuilderError"
    retryable: ClassVar[bool] = False


class UnknownNameError(BuilderError):
    """A name is not in its registry."""

    reason = "UnknownName"

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.known = sorted(known)
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(self.known)}")


class PipelineError(BuilderError):
    """Stages do not fit each other, or an option does not fit the family."""

    reason = "PipelineInvalid"


class ScoreError(PipelineError):
    """The score of `outOfDistribution` does not fit what the stages give."""


class OtherVersionError(BuilderError):
    """A revision was named by another version of segserve, whose stages may answer differently."""

    reason = "OtherVersion"


class SignatureError(BuilderError):
    """The network's inputs or outputs do not match its family."""

    reason = "SignatureMismatch"


class EngineError(BuilderError):
    """A server does not have the engine or the device of `spec.runtime`."""

    reason = "EngineUnavailable"


class ServerSlowError(BuilderError):
    """A server's container does not answer yet."""

    reason = "ServerSlow"
    retryable = True


class ArtifactMissingError(BuilderError):
    """Nothing is at the artifact's URI, or its server does not respond."""

    reason = "ArtifactMissing"
    retryable = True


class SourceUnavailableError(ArtifactMissingError):
    """A server does not respond now, or requests a later retry; a retry may succeed soon."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class SourceDeniedError(BuilderError):
    """The pool or the machine's user does not allow a URI; nothing was sent to it."""

    reason = "SourceDenied"


class SourceUnauthorizedError(BuilderError):
    """A server refuses the configured credentials, or requires some and none are configured."""

    reason = "SourceUnauthorized"
    retryable = True


class SignatureRejectedError(BuilderError):
    """A required signature is missing, by another signer, or of other bytes."""

    reason = "SignatureRejected"


class MissingPackageError(BuilderError):
    """A required package is not installed."""

    reason = "MissingPackage"

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; pip install 'segserve[{extra}]'")


class RelativeUriError(BuilderError):
    """A relative URI has no base."""

    reason = "RelativeUri"


class DigestMismatchError(BuilderError):
    """The artifact's bytes do not match its sha256."""

    reason = "DigestMismatch"
    retryable = True

    def __init__(self, uri: str, expected: str, actual: str | None) -> None:
        """Take the digests; without `actual` the message does not show what is at the URI."""
        found = "is another" if actual is None else f"is {actual}"
        super().__init__(f"sha256 of {uri} {found}; the resource says {expected}")


class FilesChangedError(BuilderError):
    """Files of a step differ from the verified ones; Triton does not keep it, and it is published again."""

    reason = "DigestMismatch"
    retryable = True

    def __init__(self, step: str, files: Iterable[str]) -> None:
        super().__init__(
            f"files of {step} changed between their verification and their load, and are not used: {', '.join(files)}"
        )


class UnsafeArtifactError(BuilderError):
    """A file would make its loader read other files or run other code; it is never loaded."""

    reason = "UnsafeArtifact"


class ArtifactTooLargeError(BuilderError):
    """A source sends more bytes than allowed."""

    reason = "ArtifactTooLarge"


class PublishError(BuilderError):
    """A repository cannot be written: the disk is full, an I/O error, a missing permission."""

    reason = "PublishFailed"
    retryable = True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the `OSError` of a failed write into a `PublishError` that names `path` and the system's reason."""
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "")
        raise PublishError(f"{path} cannot be written: {error.strerror or error} {code}".rstrip()) from error


class StepConflictError(PublishError):
    """The folder of an immutable step holds something else than that step."""

    reason = "StepConflict"
    retryable = False


class SinkError(BuilderError):
    """Samples cannot be written to a place, or read from it."""


class GoldenError(BuilderError):
    """A golden set cannot be read, or an answer is outside its tolerance."""

    reason = "GoldenFailed"


BUSY: Final = "too many requests with large images are under way"
"""How the message of a `BusyError` begins: gateways find it by this, as Triton has no status for it."""


class BusyError(Exception):
    """An image is not computed now, because others take all places; its caller may send it again."""


class BadImageError(BuilderError):
    """A request's image or parameter cannot be used; the caller can correct it."""

    reason = "BadImage"


class ImageMemoryError(BadImageError):
    """An image needs more memory than a step may use."""

    reason = "ImageTooLarge"

    def __init__(self, needed_for: str, limit_bytes: int | None) -> None:
        """`needed_for` is what was computed, with its size: `the network's input of 6000 x 8000 pixels`."""
        allowed = "it may have" if limit_bytes is None else f"the {limit_bytes / 1e9:.1f} GB that it may have"
        super().__init__(
            f"{needed_for} needs more memory than {allowed}: send a smaller image, or segment this one in tiles "
            "(`segserve batch`, `Client.segment_tiled`)"
        )


class NonFiniteError(BuilderError):
    """The network returned NaN or infinity."""

    reason = "NonFinite"


class ExportError(BuilderError):
    """A network cannot be exported as an artifact."""

    reason = "ExportFailed"


class PrecisionError(ExportError):
    """A network's answers with a reduced precision are too far from its full ones, or cannot be judged."""
