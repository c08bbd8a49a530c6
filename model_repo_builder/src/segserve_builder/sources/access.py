"""Access of fetches: what they may reach and with which credentials, by a pool's `spec.artifacts` or this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import AwareDatetime, Field

from segserve_builder.errors import SourceDeniedError, SourceUnauthorizedError
from segserve_builder.spec.model_spec import FrozenModel
from segserve_common.http.urls import is_forbidden, is_within, matches_host, refusal

ACCESS_VARIABLE: Final = "SEGSERVE_ARTIFACT_ACCESS"
"""Environment variable of agents with the JSON of an `Access`."""

DEFAULT_MAX_BYTES: Final = 16 * 1024**3
LOOPBACK_NETS: Final = ("127.0.0.0/8", "::1/128")
_PRIVATE: Final = ContextVar("private", default=False)
PRIVATE_NETS: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")


class Credential(FrozenModel):
    """The secret for hosts of a scheme: a folder with a file for each key, as Kubernetes mounts a Secret."""

    scheme: str
    host: str = "*"
    folder: Path

    @property
    def name(self) -> str:
        """The Secret's name, for messages: it is mounted as a folder of that name."""
        return self.folder.name

    def read(self, *forms: tuple[str, ...]) -> dict[str, str]:
        """Read the values by key, each time anew, as secrets are rotated in place.

        Raises `SourceUnauthorizedError` if there are no values, or if `forms` are given and none has all its keys.
        """
        # Kubernetes keeps the data of a Secret in hidden folders next to the links to it.
        try:
            files = [path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith("..")]
            values = {path.name: path.read_text().strip() for path in files}
        except (OSError, UnicodeDecodeError) as error:
            raise SourceUnauthorizedError(
                f"the Secret {self.folder.name!r} cannot be read: {type(error).__name__}"
            ) from error
        if not values:
            raise SourceUnauthorizedError(f"the Secret {self.folder.name!r} does not exist, or has no keys")
        if forms and not any(all(values.get(key) for key in form) for form in forms):
            needed = "; or ".join(", ".join(form) for form in forms)
            keys = ", ".join(sorted(values)) or "nothing"
            raise SourceUnauthorizedError(f"the Secret {self.name!r} for {self.scheme}: has {keys}; needed: {needed}")
        return values


class Identity(FrozenModel):
    """A signer that sigstore's certificates name."""

    identity: str
    issuer: str


class Signatures(FrozenModel):
    """Trusted signers, and whether a signature is required. Keys and certificates are PEM.

    A signature must be later than `not_before`, which only certificates prove: keys have no time.
    """

    required: bool = False
    keys: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    identities: tuple[Identity, ...] = ()
    not_before: AwareDatetime | None = None


class Access(FrozenModel):
    """Allowed schemes, hosts, addresses and folders of fetches, and their credentials.

    Patterns of hosts are `fnmatch` patterns, in lower case. A host is the part after `scheme://` in an artifact's URI:
    a server, a registry, a bucket.
    """

    schemes: tuple[str, ...] | None = None
    """Allowed schemes; None allows all that are registered."""

    hosts: tuple[str, ...] = ()
    """Patterns of allowed hosts; empty allows all."""

    ceiling: tuple[str, ...] = ()
    """Further patterns, of which each host, also of `endpoints`, must match one: the operator's limit for all pools."""

    private: tuple[str, ...] = ()
    """Patterns of hosts, or networks, whose addresses may be of this machine or of a private network."""

    folders: tuple[Path, ...] | None = None
    """Folders that `file:` may read; None allows all."""

    claims: Path | None = None
    """The folder with a folder for each claim of `pvc:`; None if no claims are mounted."""

    endpoints: dict[str, str] = Field(default_factory=dict)
    """URLs of servers by scheme, in place of the usual ones; they may have any address."""

    credentials: tuple[Credential, ...] = ()

    ambient: bool = False
    """Whether the environment's credentials are used if none of `credentials` matches."""

    signatures: Signatures = Signatures()
    floor: Signatures = Signatures()
    """Signers whose signature is also needed, if `required`: the operator's demand on all pools."""

    max_bytes: int = DEFAULT_MAX_BYTES
    max_cache_bytes: int | None = None
    """Size that the cache is kept below, if it can be; None lets it grow."""

    def check_uri(self, scheme: str, host: str) -> None:
        """Raise `SourceDeniedError` if the scheme or the host is not allowed; nothing has been sent by then."""
        if self.schemes is not None and scheme not in self.schemes:
            raise SourceDeniedError(
                f"the scheme {scheme!r} is not allowed; allowed: {', '.join(self.schemes) or 'none'}"
            )
        if self.hosts and host and not matches_host(host, self.hosts):
            raise SourceDeniedError(f"the host {host!r} is not allowed; allowed: {', '.join(self.hosts)}")
        server = urlsplit(self.endpoints.get(scheme, "")).hostname
        for each in filter(None, (host, server) if self.ceiling else ()):
            if not matches_host(each, self.ceiling):
                allowed = ", ".join(self.ceiling)
                raise SourceDeniedError(f"the host {each!r} is not in the chart's artifacts.hosts: {allowed}")

    def check_address(self, host: str, address: str) -> None:
        """Raise `SourceDeniedError` if `host` has an address that is not allowed.

        Call it with the address that is connected to, also after each redirect: a second lookup of the name can give
        another one. Nothing in `private` or `endpoints` allows link-local addresses and metadata services.
        """
        why = refusal(address)
        if not why:
            return
        own = {urlsplit(url).hostname for url in self.endpoints.values()}
        is_listed = host in own or matches_host(host, self.private) or is_within(address, self.private)
        if is_listed and not is_forbidden(address):
            _PRIVATE.set(self.folders is not None)  # the user of this machine may read what is there
            return
        allowed = ", ".join(self.private) or "none"
        raise SourceDeniedError(f"{host!r} is at {address}, {why}; of such addresses these are allowed: {allowed}")

    def credential(self, scheme: str, host: str) -> Credential | None:
        """Return the first credential that matches a host."""
        matching = (each for each in self.credentials if each.scheme == scheme and matches_host(host, (each.host,)))
        return next(matching, None)

    def secret(self, scheme: str, host: str, *forms: tuple[str, ...]) -> dict[str, str]:
        """Return the secret for a host, by key, as `Credential.read` does; empty if no credential matches."""
        credential = self.credential(scheme, host)
        return credential.read(*forms) if credential is not None else {}


LOCAL: Final = Access(private=LOOPBACK_NETS + PRIVATE_NETS, ambient=True)
"""Access of this machine's user: all but link-local addresses and metadata services, with ambient credentials."""


@contextmanager
def separate_fetch() -> Iterator[None]:
    """Forget within the context, and again after it, whether a private address was connected to."""
    token = _PRIVATE.set(False)
    try:
        yield
    finally:
        _PRIVATE.reset(token)


def shown_digest(actual: str) -> str | None:
    """Return a fetched file's digest for a message, None if this fetch has connected to a private address.

    The message's reader may not be allowed to read what is there, and a digest can be tried in the next fetch.
    """
    return None if _PRIVATE.get() else actual
