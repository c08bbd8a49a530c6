"""What fetches may reach, and with whose credentials: a pool's `spec.artifacts`, or what this machine's user allows."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import Field

from segserve_builder.errors import SourceDeniedError, SourceUnauthorizedError
from segserve_builder.spec.model_spec import FrozenModel
from segserve_common.http.addresses import is_within, refusal

ACCESS_VARIABLE: Final = "SEGSERVE_ARTIFACT_ACCESS"
"""What agents are told it by: the JSON of an `Access`."""

DEFAULT_MAX_BYTES: Final = 16 * 1024**3
LOOPBACK_NETS: Final = ("127.0.0.0/8", "::1/128")
PRIVATE_NETS: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")


class Credential(FrozenModel):
    """Where the secret for a scheme's hosts lies: a folder with one file a key, as Kubernetes mounts a Secret."""

    scheme: str
    host: str = "*"
    folder: Path

    @property
    def name(self) -> str:
        """What it is called in messages: a Secret is mounted as a folder of its name."""
        return self.folder.name

    def read(self, *forms: tuple[str, ...]) -> dict[str, str]:
        """Return the values by key, anew each time, since secrets are renewed in place.

        Raises `SourceUnauthorizedError` where they are not there, or where `forms` are given and the keys of none of
        them all are.
        """
        found = _read_folder(self.folder)
        if forms and not any(all(found.get(key) for key in form) for form in forms):
            wanted = "; or ".join(", ".join(form) for form in forms)
            seen = ", ".join(sorted(found)) or "nothing"
            raise SourceUnauthorizedError(f"the Secret {self.name!r} for {self.scheme}: has {seen}; needed: {wanted}")
        return found


class Identity(FrozenModel):
    """Somebody whom sigstore's certificates name."""

    identity: str
    issuer: str


class Signatures(FrozenModel):
    """Whose signatures count, and whether there must be one. Keys and certificates are PEM."""

    required: bool = False
    keys: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    identities: tuple[Identity, ...] = ()


class Access(FrozenModel):
    """What fetches may reach. Patterns of hosts are those of `fnmatch`, in lower case.

    A host is what follows `scheme://` in an artifact's URI: a server, a registry, a bucket.
    """

    schemes: tuple[str, ...] | None = None
    """The schemes allowed; None: all that are registered."""

    hosts: tuple[str, ...] = ()
    """Patterns of the hosts allowed; empty: any."""

    private: tuple[str, ...] = ()
    """Patterns of hosts, or networks, whose addresses may be of the machine itself or of a net that is not public."""

    folders: tuple[Path, ...] | None = None
    """Below which `file:` may read; None: anywhere."""

    claims: Path | None = None
    """Where `pvc:` finds each claim as a folder of its name; None: nowhere."""

    endpoints: dict[str, str] = Field(default_factory=dict)
    """The server's URL by scheme, where it is not the usual one; what stands here may lie at any address."""

    credentials: tuple[Credential, ...] = ()

    ambient: bool = False
    """Whether the environment's own credentials count where none of `credentials` fits."""

    signatures: Signatures = Signatures()
    max_bytes: int = DEFAULT_MAX_BYTES
    max_cache_bytes: int | None = None
    """What the cache is kept below, where it can be; None: it grows."""

    def check_uri(self, scheme: str, host: str) -> None:
        """Raise `SourceDeniedError` where the scheme or the host is not allowed; no packet has been sent by then."""
        if self.schemes is not None and scheme not in self.schemes:
            raise SourceDeniedError(
                f"the scheme {scheme!r} is not allowed; allowed: {', '.join(self.schemes) or 'none'}"
            )
        if self.hosts and host and not _fits(host, self.hosts):
            raise SourceDeniedError(f"the host {host!r} is not allowed; allowed: {', '.join(self.hosts)}")

    def check_address(self, host: str, address: str) -> None:
        """Raise `SourceDeniedError` where `host` turned out to lie at an address that it may not have.

        Call it with the very address that is connected to, at each redirect too: a name can change between two looks.
        """
        why = refusal(address)
        own = {urlsplit(url).hostname for url in self.endpoints.values()}
        if not why or host in own or _fits(host, self.private) or is_within(address, self.private):
            return
        allowed = ", ".join(self.private) or "none"
        raise SourceDeniedError(f"{host!r} is at {address}, {why}; of such addresses these are allowed: {allowed}")

    def credential(self, scheme: str, host: str) -> Credential | None:
        """Return the first credential that fits a host."""
        fitting = (each for each in self.credentials if each.scheme == scheme and _fits(host, (each.host,)))
        return next(fitting, None)

    def secret(self, scheme: str, host: str, *forms: tuple[str, ...]) -> dict[str, str]:
        """Return the secret for a host, by key, as `Credential.read` does; nothing where none fits."""
        credential = self.credential(scheme, host)
        return credential.read(*forms) if credential is not None else {}


LOCAL: Final = Access(private=LOOPBACK_NETS + PRIVATE_NETS, ambient=True)
"""This machine's user: everything but link-local addresses and metadata services, with the user's own credentials."""


def _fits(host: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(host.lower(), pattern.lower()) for pattern in patterns)


def _read_folder(folder: Path) -> dict[str, str]:
    # Kubernetes keeps a Secret's former versions beside it, in hidden folders.
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith("..")]
        found = {path.name: path.read_text().strip() for path in files}
    except (OSError, UnicodeDecodeError) as error:
        raise SourceUnauthorizedError(f"the Secret {folder.name!r} cannot be read: {type(error).__name__}") from error
    if not found:
        raise SourceUnauthorizedError(f"the Secret {folder.name!r} is not there, or has no keys")
    return found
