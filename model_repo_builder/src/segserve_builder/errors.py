"""Every error the builder raises on purpose; `reason` is the one word that a condition shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


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
