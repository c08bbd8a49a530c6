"""Every error the builder raises on purpose; `reason` is the one word that a condition shows."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class BuilderError(Exception):
    """A pipeline, an artifact or an image that cannot be used; the text says what was seen and allowed."""

    reason: ClassVar[str] = "BuilderError"
    retryable: ClassVar[bool] = False


class UnknownNameError(BuilderError):
    """A name that no registry holds."""

    reason = "UnknownName"

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.known = sorted(known)
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(self.known)}")


class PipelineError(BuilderError):
    """Stages that do not fit each other, or an option that does not fit the family."""

    reason = "PipelineInvalid"


class OtherVersionError(BuilderError):
    """A revision whose name this version of segserve does not give it: its stages may answer differently."""

    reason = "OtherVersion"


class SignatureError(BuilderError):
    """The network's inputs or outputs are not those of its family."""

    reason = "SignatureMismatch"


class ArtifactMissingError(BuilderError):
    """Nothing is at the artifact's URI, or its server does not answer."""

    reason = "ArtifactMissing"
    retryable = True


class SourceUnavailableError(ArtifactMissingError):
    """A server that does not answer now, or says that it will later; asking again soon is worth it."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class SourceDeniedError(BuilderError):
    """A URI that the pool, or the machine's user, does not allow; nothing was sent to it."""

    reason = "SourceDenied"


class SourceUnauthorizedError(BuilderError):
    """A server that does not give the artifact to the credentials there are, or wants some where there are none."""

    reason = "SourceUnauthorized"
    retryable = True


class SignatureRejectedError(BuilderError):
    """An artifact whose signature is missing, of somebody else, or of other bytes, where one is demanded."""

    reason = "SignatureRejected"


class MissingPackageError(BuilderError):
    """A package that is needed here and not installed."""

    reason = "MissingPackage"

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; pip install 'segserve[{extra}]'")


class RelativeUriError(BuilderError):
    """A relative URI where there is nothing that it could be relative to."""

    reason = "RelativeUri"


class DigestMismatchError(BuilderError):
    """The artifact's bytes are not the ones that its sha256 names."""

    reason = "DigestMismatch"
    retryable = True

    def __init__(self, uri: str, expected: str, actual: str) -> None:
        super().__init__(f"sha256 of {uri} is {actual}; the resource says {expected}")


class UnsafeArtifactError(BuilderError):
    """A file that would make its loader read other files or run other code; it is never loaded."""

    reason = "UnsafeArtifact"


class ArtifactTooLargeError(BuilderError):
    """A source that sends more bytes than are allowed."""

    reason = "ArtifactTooLarge"


class PublishError(BuilderError):
    """A repository that could not be written: a full disk, an I/O error, a missing permission."""

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
    """A folder of an immutable step's name that holds something else than that step."""

    reason = "StepConflict"
    retryable = False


class GoldenError(BuilderError):
    """A golden set that cannot be read, or an answer outside its tolerance."""

    reason = "GoldenFailed"


class BadImageError(BuilderError):
    """A request's image or parameter that cannot be used: the caller's fault."""

    reason = "BadImage"


class NonFiniteError(BuilderError):
    """The network gave NaN or infinity."""

    reason = "NonFinite"


class ExportError(BuilderError):
    """A network that cannot be turned into an artifact."""

    reason = "ExportFailed"
