"""The source `models`: registered models of an MLflow server, by MLflow's `models:/name/version` or `@alias`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode, urlsplit

from segserve_builder.errors import ArtifactMissingError, SourceDeniedError, UnknownNameError
from segserve_builder.sources.access import Access
from segserve_builder.sources.base import ArtifactSource, FolderSource, Stream
from segserve_builder.sources.http import SourceRequest, authorization, get, open_file, url_of

_FORM: Final = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))(?:/(?P<path>.+))?")
_PROXIED: Final = "mlflow-artifacts"
_DEEPEST: Final = 10  # a server could list folders within folders forever
_KEYS: Final = (("token",), ("username", "password"))


@dataclass(frozen=True, slots=True)
class _Tracking:
    """A tracking server."""

    url: str
    access: Access
    request: SourceRequest

    def get(self, path: str, /, **query: str) -> Any:
        """Return the JSON at a path of the API."""
        with get(f"{self.url}/api/2.0/{path}?{urlencode(query)}", self.access, self.request) as response:
            return response.json()

    def location(self, name: str, version: str | None, alias: str) -> str:
        """Return the URI of the folder with a model version's files."""
        if version is None:
            found = self.get("mlflow/registered-models/alias", name=name, alias=alias)
            version = str(found["model_version"]["version"])
        found = self.get("mlflow/model-versions/get-download-uri", name=name, version=version)
        return str(found["artifact_uri"]).rstrip("/")

    def proxied(self, location: str) -> str:
        """Return the path of a folder that the server itself serves."""
        parts = urlsplit(location)
        if parts.netloc not in ("", urlsplit(self.url).netloc):
            raise SourceDeniedError(f"{location!r} is on another server than {self.url}, which named it")
        return parts.path.strip("/")

    def files(self, folder: str, depth: int = 0) -> Iterator[str]:
        """Yield the paths below a folder that the server itself serves, relative to it."""
        for entry in self.get("mlflow-artifacts/artifacts", path=folder).get("files", []):
            name = str(entry["path"]).rpartition("/")[2]
            if not entry["is_dir"]:
                yield name
            elif depth < _DEEPEST:
                yield from (f"{name}/{below}" for below in self.files(f"{folder}/{name}", depth + 1))


class MlflowSource:
    """Files of model versions; a credential has `token`, or `username` and `password`, for the tracking server's host.

    Files that the server does not serve itself are read by the `stores`, as `access` allows there.
    """

    def __init__(self, stores: Mapping[str, ArtifactSource]) -> None:
        self._stores = stores

    @contextmanager
    def open(self, uri: str, access: Access, start: int = 0) -> Iterator[Stream]:
        """Open the file that the URI names, by default the version's only `.onnx` file."""
        tracking = _tracking(access)
        location, path = _located(uri, tracking)
        path = path or self._only_network(uri, location, tracking)
        if urlsplit(location).scheme == _PROXIED:
            url = f"{tracking.url}/api/2.0/mlflow-artifacts/artifacts/{quote(tracking.proxied(location))}/{quote(path)}"
            with open_file(url, access, tracking.request, start) as stream:
                yield stream
            return
        with self._store(location, access).open(f"{location}/{quote(path)}", access, start) as stored:
            yield stored

    def files(self, uri: str, access: Access) -> Iterator[str]:
        """Yield the paths of all files of the version, or of those below the folder that the URI names."""
        tracking = _tracking(access)
        location, path = _located(uri, tracking)
        yield from self._files(f"{location}/{quote(path)}".rstrip("/"), tracking)

    def _files(self, folder: str, tracking: _Tracking) -> Iterator[str]:
        if urlsplit(folder).scheme == _PROXIED:
            yield from tracking.files(unquote(tracking.proxied(folder)))
            return
        store = self._store(folder, tracking.access)
        if not isinstance(store, FolderSource):
            raise ArtifactMissingError(f"{folder!r} cannot be listed; name the file: models:/name/version/path")
        yield from store.files(folder, tracking.access)

    def _only_network(self, uri: str, location: str, tracking: _Tracking) -> str:
        found = sorted(path for path in self._files(location, tracking) if path.lower().endswith(".onnx"))
        if len(found) != 1:
            raise ArtifactMissingError(f"{uri!r} has {', '.join(found) or 'no .onnx file'}; name the file: {uri}/path")
        return found[0]

    def _store(self, location: str, access: Access) -> ArtifactSource:
        parts = urlsplit(location)
        scheme = parts.scheme or "file"
        if scheme not in self._stores:
            raise UnknownNameError("scheme of a model's files", scheme, [*self._stores, _PROXIED])
        access.check_uri(scheme, parts.hostname or "")
        return self._stores[scheme]


def _located(uri: str, tracking: _Tracking) -> tuple[str, str]:
    """Return the URI of a version's files, and the path among them that the URI names, if any."""
    found = _FORM.fullmatch(uri.rstrip("/"))
    path = unquote(found["path"] or "") if found else ""
    if found is None or ".." in path.split("/"):
        raise ArtifactMissingError(
            f"{uri!r} is not a model version; allowed: models:/name/version[/path], models:/name@alias[/path]"
        )
    return tracking.location(unquote(found["name"]), found["version"], unquote(found["alias"] or "")), path


def _tracking(access: Access) -> _Tracking:
    ambient: Mapping[str, str] = os.environ if access.ambient else {}
    url = access.endpoints.get("models") or ambient.get("MLFLOW_TRACKING_URI", "")
    if not url.startswith(("http://", "https://")):
        raise ArtifactMissingError(
            f"the MLflow server is {url!r}; set its http(s) URL: an endpoint for models, or MLFLOW_TRACKING_URI"
        )
    secret = access.secret("models", url_of(url).host, *_KEYS)
    known = secret or {
        key: value
        for key in ("token", "username", "password")
        if (value := ambient.get(f"MLFLOW_TRACKING_{key.upper()}"))
    }
    request = SourceRequest("models", authorization=authorization(known), authority=secret.get("ca.crt"))
    return _Tracking(url.rstrip("/"), access, request)
