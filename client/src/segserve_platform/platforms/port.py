"""The port to a platform, implemented by this machine and by clusters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from segserve_operator.api.resources import Resource

Json: TypeAlias = dict[str, Any]

MODEL: Final = "SegmentationModel"
POOL: Final = "TritonPool"
ROLLOUT: Final = "SegmentationRollout"
_NOT_APPLIED: Final = ("status",)


@dataclass(frozen=True, slots=True)
class ParsedResource:
    """One resource, typed and as written; relative addresses are relative to `folder`."""

    resource: Resource
    value: Json
    source: str
    folder: Path

    @property
    def title(self) -> str:
        """Kind and name as commands print them."""
        return f"{self.resource.kind.lower()}/{self.resource.metadata.name}"

    def complete(self) -> Json:
        """Return the manifest with all defaults and absolute addresses, without status."""
        manifest = {key: value for key, value in self.resource.to_dict().items() if key not in _NOT_APPLIED}
        manifest["metadata"] = {key: value for key, value in manifest["metadata"].items() if value}
        for _, named in _addressed(manifest["spec"]):
            named["uri"] = _absolute(named["uri"], self.folder)
        return manifest

    def local_files(self) -> list[LocalFile]:
        """Return the addresses that lead to this machine's files, without a look at them."""
        found = []
        for field, named in _addressed(self.resource.to_dict()["spec"]):
            parts = urlsplit(_absolute(named["uri"], self.folder))
            if parts.scheme == "file":
                is_relative = not urlsplit(named["uri"]).scheme and not named["uri"].startswith("/")
                path, is_part = Path(unquote(parts.path)), bool(parts.fragment)
                found.append(LocalFile(f"spec.{field}", path, is_relative, is_part, named["sha256"]))
        return found


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file or folder of this machine that `field` of a resource names; `sha256` must be its digest, or its part's."""

    field: str
    path: Path
    is_relative: bool
    is_part: bool
    sha256: str

    @property
    def other_digest(self) -> str:
        """The digest that it has instead; empty if it has the right one, is a part, or cannot be read."""
        from segserve_builder.errors import BuilderError
        from segserve_builder.sources.folder import folder_digest
        from segserve_common.files import file_sha256

        try:
            found = "" if self.is_part else folder_digest(self.path) if self.path.is_dir() else file_sha256(self.path)
        except (OSError, BuilderError):
            return ""  # a server says why
        return "" if found == self.sha256 else found


@dataclass(frozen=True, slots=True)
class Change:
    """A resource as it is (None if it does not exist) and as `apply` would leave it; `later`: what waits, in words."""

    before: Json | None
    after: Json
    later: str = ""

    @property
    def outcome(self) -> str:
        """What `apply` would answer: created, configured or unchanged."""
        if self.before is None:
            return "created"
        return "unchanged" if user_fields(self.before) == user_fields(self.after) else "configured"


def user_fields(manifest: Json) -> Json:
    """Return the part of a manifest that users decide: labels, annotations, spec, and whether it is deleted."""
    metadata = manifest["metadata"]
    kept = ("labels", "annotations", "deletionTimestamp")
    return {"metadata": {key: metadata[key] for key in kept if metadata.get(key)}, "spec": manifest.get("spec")}


@dataclass(frozen=True, slots=True)
class PlatformEvent:
    """Something that happened at a Unix time; `about` is a model, a pool, a server or a gateway, with its name."""

    at_s: float
    about: str
    warning: bool
    reason: str
    message: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class DoctorCheck:
    """One requirement of a platform: its name, what was found, and advice if it is not met.

    `fix` is a command that fixes it, if there is one.
    """

    what: str
    good: bool
    seen: str
    advice: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class PlatformVersion:
    """A platform that is up: where it is, its URL, and the version of segserve there ("" if that cannot be seen)."""

    place: str
    url: str
    version: str


class Platform(Protocol):
    """A place where resources are stored and served. Requests that fail raise a `ControlError` that says what helps."""

    def apply(self, resources: Sequence[ParsedResource], *, force: bool = False) -> list[str]:
        """Create or change all resources or none; return for each: created, configured or unchanged.

        `force` takes over fields that another tool has set, if the platform tracks field ownership.
        """

    def preview(self, resources: Sequence[ParsedResource], *, force: bool = False) -> list[Change]:
        """Return what `apply` would change, and change nothing; raises as `apply` does."""

    def check_namespace(self, resources: Iterable[ParsedResource]) -> None:
        """Raise if a resource belongs to another namespace than the platform's."""

    def delete(self, kind: str, name: str) -> str:
        """Request the deletion of a resource and return its outcome; raises `NotFoundError`."""

    def runs(self) -> bool:
        """Return whether a platform runs that carries out requests, so that waiting makes sense."""

    def version(self) -> PlatformVersion | None:
        """Return the version of the platform, or None if none is up."""

    def models(self) -> list[Json]:
        """Return all models, sorted by name."""

    def model(self, name: str) -> Json:
        """Return one model; raises `NotFoundError`."""

    def find(self, kind: str, name: str) -> Json | None:
        """Return a model or pool, or None if it does not exist."""

    def pools(self) -> list[Json]:
        """Return all pools, sorted by name."""

    def pool(self, name: str) -> Json:
        """Return one pool; raises `NotFoundError`."""

    def rollouts(self) -> list[Json]:
        """Return the records of rollouts as resources, sorted by name."""

    def rollout(self, name: str) -> Json | None:
        """Return the record of a rollout, or None if it does not exist."""

    def chunks(self, rollout: str, count: int) -> list[str]:
        """Return the first `count` chunks of a record's oldest evidence, packed; [] if any of them is missing."""

    def sheet(self, model: str) -> bytes | None:
        """Return the pairs of answers that differ most in Shadow, as JSON; None if none are compared.

        Raises `ControlError` on a platform that cannot show them.
        """

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        """Set annotations of a resource and keep its others; raises `NotFoundError`."""

    def user(self) -> str:
        """Return the name of the user who sends the requests; empty if it is unknown."""

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        """Yield a resource now, after each change and at least every second, without end; None if it does not exist."""

    def last_words(self, model: str) -> str:
        """Return the newest line of the logs behind a model as the end of a sentence; empty without logs."""

    def events(self, model: str) -> list[PlatformEvent]:
        """Return the events of a model and of its pool, edits of both, and starts and ends of servers and gateways."""

    def access_log(self, since_s: float) -> Iterator[str] | None:
        """Return the lines of the gateways' access logs since a Unix time, and others between; None if none is kept."""

    def gateway(self, model: str) -> AbstractContextManager[str | None]:
        """Make the gateway of a model reachable inside the block; yields its URL, or None for the default URL."""

    def close(self) -> None:
        """Close the connections."""

    def checks(self) -> Iterator[DoctorCheck]:
        """Yield the checks of the platform's requirements, in the order in which to fix them."""


def _addressed(spec: Json) -> Iterator[tuple[str, Json]]:
    """Yield the parts of a model's spec that name a file or folder, each with its field."""
    yield from ((field, spec[field]) for field in ("artifact", "golden") if spec.get(field) is not None)
    if spec.get("decoder") is not None:
        yield "decoder.artifact", spec["decoder"]["artifact"]


def _absolute(uri: str, folder: Path) -> str:
    """Return an address as a URI; a path is relative to `folder`, and may name a file in an archive after `#`."""
    if urlsplit(uri).scheme:
        return uri
    from segserve_builder.sources.archives import is_archive

    archive, _, member = uri.partition("#")
    if not member or not is_archive(archive):
        return (folder / uri).resolve().as_uri()
    return f"{(folder / archive).resolve().as_uri()}#{quote(member)}"
