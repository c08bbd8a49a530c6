"""Reads of the OCI distribution protocol: tokens, manifests and blobs, over guarded HTTP."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, Field, ValidationError

from segserve_builder.errors import (
    ArtifactMissingError,
    DigestMismatchError,
    SourceDeniedError,
    SourceUnauthorizedError,
)
from segserve_builder.sources.access import Access, shown_digest
from segserve_builder.sources.http import HttpStream, SourceRequest, authorization, get, open_file, url_of

if TYPE_CHECKING:
    from segserve_common.http.guard import StreamedResponse

_MANIFESTS: Final = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_TAR: Final = re.compile(r"application/vnd\.(oci\.image\.layer|docker\.image\.rootfs)\..*tar\b.*")
_TITLE: Final = "org.opencontainers.image.title"
_UNPACKED: Final = "io.deis.oras.content.unpack"
_HUB: Final = {"docker.io": "registry-1.docker.io"}
_HUB_ACCOUNT: Final = "https://index.docker.io/v1/"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_DEEPEST_INDEX: Final = 3
_DOCKER: Final = ".dockerconfigjson"
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')


class ImagePlatform(BaseModel, frozen=True):
    """The platform of an image."""

    os: str = ""
    architecture: str = ""


class Layer(BaseModel, frozen=True):
    """A layer of an image, a file of an artifact, or a manifest of an index."""

    media_type: str = Field("", alias="mediaType")
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    platform: ImagePlatform | None = None
    annotations: dict[str, str] | None = None

    @property
    def title(self) -> str:
        """The name of the file; empty without one."""
        return (self.annotations or {}).get(_TITLE, "")

    @property
    def is_file(self) -> bool:
        """Whether the blob is one file of an artifact, and not a tar of several."""
        is_folder = (self.annotations or {}).get(_UNPACKED) == "true"
        return not is_folder and bool(self.title or not _TAR.fullmatch(self.media_type))


class Manifest(BaseModel, frozen=True):
    """A manifest: the layers of one image or artifact, or an index of several."""

    layers: tuple[Layer, ...] = ()
    manifests: tuple[Layer, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference to an image or artifact; a digest takes precedence over the tag."""

    registry: str
    repository: str
    tag: str
    digest: str | None


class Registry:
    """One repository of a registry, with the token for it."""

    def __init__(self, reference: Reference, access: Access) -> None:
        self._reference = reference
        self._access = access
        host = urlsplit(f"//{reference.registry}").hostname or ""
        self._url = f"{_base(reference.registry, host, access)}/v2/{reference.repository}"
        self._account, authority = _account(reference.registry, host, access)
        self._request = SourceRequest("oci", authority=authority)

    @property
    def max_bytes(self) -> int:
        """The largest number of bytes of a layer, unpacked, that is read."""
        return self._access.max_bytes

    def layers(self) -> Sequence[Layer]:
        """Return the layers of the reference; of an index, the layers for this machine."""
        name = self._reference.digest or self._reference.tag
        for _ in range(_DEEPEST_INDEX):
            with self._authenticated(f"{self._url}/manifests/{name}") as response:
                body = response.content()
            actual = f"sha256:{hashlib.sha256(body).hexdigest()}"
            # A tag pins nothing; the sha256 of the artifact still pins the file.
            if name.startswith("sha256:") and actual != name:
                raise DigestMismatchError(f"the manifest of {self._url}", name, shown_digest(actual))
            try:
                manifest = Manifest.model_validate_json(body)
            except ValidationError as error:
                raise ArtifactMissingError(f"'{response.url}' is not a manifest: {error.errors()[0]['msg']}") from error
            if manifest.manifests is None:
                return manifest.layers
            name = _for_this_machine(manifest.manifests, self._url).digest
        raise ArtifactMissingError(f"{self._url!r} has an index within an index within an index")

    @contextmanager
    def blob(self, layer: Layer, start: int = 0) -> Iterator[HttpStream]:
        """Open a layer; call `layers` first, which gets the token."""
        with open_file(f"{self._url}/blobs/{layer.digest}", self._access, self._request, start) as stream:
            yield stream

    @contextmanager
    def _authenticated(self, url: str) -> Iterator[StreamedResponse]:
        """Send a request without credentials, and again with the credentials that the registry's challenge requires."""
        request = replace(self._request, headers={"Accept": _MANIFESTS})
        with get(url, self._access, replace(request, returned=frozenset({401}))) as response:
            if response.status != 401:
                yield response
                return
            challenges = response.headers.get_list("WWW-Authenticate")
        self._request = replace(self._request, authorization=self._authorized(challenges))
        with get(url, self._access, replace(request, authorization=self._request.authorization)) as response:
            yield response

    def _authorized(self, challenges: Sequence[str]) -> str | None:
        for challenge in challenges:
            if challenge.lower().startswith("bearer "):
                return f"Bearer {self._token(dict(_CHALLENGE.findall(challenge)))}"
        return self._account

    def _token(self, challenge: Mapping[str, str]) -> str:
        """Return a token of the server that the registry names, which is checked as every other host is."""
        realm, own = url_of(challenge.get("realm", "")), url_of(self._url)
        if own.scheme == "https" and realm.scheme != "https":
            raise SourceDeniedError(f"{own.host!r} asks for the password to be sent to '{realm}'; allowed: https")
        if realm.host != own.host:
            self._access.check_uri("oci", realm.host)
        scope = challenge.get("scope", f"repository:{self._reference.repository}:pull")
        query = urlencode({"service": challenge.get("service", ""), "scope": scope})
        url = f"{challenge['realm']}{'&' if '?' in challenge['realm'] else '?'}{query}"
        request = SourceRequest("oci", authorization=self._account, authority=self._request.authority)
        with get(url, self._access, request) as response:
            answer = response.json()
        token = answer.get("token") or answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or not token.isprintable():
            raise SourceUnauthorizedError(f"'{realm}' returns no token")
        return token


def _base(registry: str, host: str, access: Access) -> str:
    """Return a registry's URL: https, unless it is on this machine or the endpoint for oci is http."""
    endpoint = urlsplit(access.endpoints.get("oci", ""))
    if endpoint.netloc == registry:
        return f"{endpoint.scheme}://{registry}"
    return f"{'http' if _is_loopback(host) else 'https'}://{_HUB.get(registry, registry)}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _account(registry: str, host: str, access: Access) -> tuple[str | None, str | None]:
    """Return the Authorization header of a registry's account, if any, and the PEM of an additional authority."""
    secret = access.secret("oci", host, ("username", "password"), (_DOCKER,))
    if not secret and access.ambient:
        path = Path(os.environ.get("DOCKER_CONFIG") or "~/.docker").expanduser() / "config.json"
        try:
            secret = {_DOCKER: path.read_text()}
        except OSError:
            return None, None
    if _DOCKER in secret:
        return authorization(_docker_account(secret[_DOCKER], registry)), secret.get("ca.crt")
    return authorization(secret), secret.get("ca.crt")


def _docker_account(text: str, registry: str) -> dict[str, str]:
    """Return the account of a registry in a docker config; credential helpers are programs, and not run."""
    try:
        accounts: dict[str, Any] = json.loads(text).get("auths", {})
        wanted = (registry, f"https://{registry}", *([_HUB_ACCOUNT] if registry in _HUB else []))
        found: dict[str, Any] = next((accounts[name] for name in wanted if name in accounts), {})
        if "auth" in found:
            user, _, password = base64.b64decode(found["auth"]).decode().partition(":")
            return {"username": user, "password": password}
        return {key: str(found[key]) for key in ("username", "password") if key in found}
    except (AttributeError, TypeError, ValueError, binascii.Error) as error:
        raise SourceUnauthorizedError("the docker config of the credential cannot be read") from error


def _for_this_machine(manifests: Sequence[Layer], url: str) -> Layer:
    wanted = ("linux", _ARCHITECTURES.get(platform.machine(), platform.machine()))
    fitting = [each for each in manifests if each.platform and (each.platform.os, each.platform.architecture) == wanted]
    if not fitting and len(manifests) == 1:
        return manifests[0]
    if not fitting:
        seen = ", ".join(f"{each.platform.os}/{each.platform.architecture}" for each in manifests if each.platform)
        raise ArtifactMissingError(f"{url!r} is for {seen or 'no platform'}; needed: {'/'.join(wanted)}")
    return fitting[0]
