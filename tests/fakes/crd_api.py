"""An API server as a client of custom resources sees it: raw calls, strict validation, whole answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from fakes.kube_connection import context_of_file, ssl_context_of
from fakes.starting_servers import read_again
from fakes.waiting import HANG_S, until
from segserve_common.kube.config import authorization

Json = dict[str, Any]

_DEFINITIONS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_MERGE: Final = {"content-type": "application/merge-patch+json"}
_TABLE: Final = {"accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}


class RefusedError(Exception):
    """The server said no: its status code, and why."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


class CrdApi:
    """Calls of objects in the namespace `default`; each answer of 400 or more is a `RefusedError`."""

    def __init__(self, kubeconfig: Path, api_version: str) -> None:
        self._resources = f"/apis/{api_version}/namespaces/default"
        context = context_of_file(kubeconfig)
        configuration = context.configuration()
        self._http = httpx.Client(
            base_url=context.server,
            headers=authorization(configuration),
            verify=ssl_context_of(configuration),
            trust_env=False,
            timeout=HANG_S,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def uninstall(self, name: str) -> None:
        """Remove a custom resource, where it is installed, with all its objects."""

        def gone() -> bool:
            answer = read_again(lambda: self._http.delete(f"{_DEFINITIONS}/{name}"))
            return answer.status_code == httpx.codes.NOT_FOUND

        until(gone, f"{name} is gone")

    def install(self, definition: Json) -> None:
        """Install a custom resource, or put this in the place of another, which may answer for a moment yet."""
        name = definition["metadata"]["name"]
        found = self._get(f"{_DEFINITIONS}/{name}")
        if found.status_code == httpx.codes.NOT_FOUND:
            self._json(self._http.post(_DEFINITIONS, json=definition))
        else:
            version = self._json(found)["metadata"]["resourceVersion"]
            metadata = {**definition["metadata"], "resourceVersion": version}
            self._json(self._http.put(f"{_DEFINITIONS}/{name}", json={**definition, "metadata": metadata}))
        self._wait_until_served(definition)

    def definition(self, name: str) -> Json:
        """Return an installed custom resource."""
        return self._json(self._get(f"{_DEFINITIONS}/{name}"))

    def create(self, plural: str, manifest: Json, *, dry_run: bool = False) -> Json:
        """Create an object with strict validation and return it as stored."""
        return self._json(
            self._http.post(f"{self._resources}/{plural}", json=manifest, params=_strict(dry_run=dry_run))
        )

    def patch(self, plural: str, name: str, patch: Json, *, subresource: str = "") -> Json:
        """Merge a patch into an object, or into a subresource of it."""
        url = self._path(plural, name, subresource)
        return self._json(self._http.patch(url, content=json.dumps(patch), params=_strict(), headers=_MERGE))

    def replace(self, plural: str, name: str, manifest: Json, *, subresource: str = "") -> Json:
        """Put an object, or a subresource of it, in the place of the one there is."""
        return self._json(self._http.put(self._path(plural, name, subresource), json=manifest, params=_strict()))

    def get(self, plural: str, name: str, *, subresource: str = "") -> Json:
        """Return an object, or a subresource of it."""
        return self._json(self._get(self._path(plural, name, subresource)))

    def table(self, plural: str) -> Json:
        """Return what `kubectl get` shows: `columnDefinitions` and `rows`."""
        return self._json(self._get(f"{self._resources}/{plural}", headers=_TABLE))

    def delete_all(self, plural: str) -> None:
        """Delete all objects."""
        self._json(self._http.delete(f"{self._resources}/{plural}"))

    def _path(self, plural: str, name: str, subresource: str) -> str:
        return f"{self._resources}/{plural}/{name}" + (f"/{subresource}" if subresource else "")

    def _wait_until_served(self, definition: Json) -> None:
        plural, name = definition["spec"]["names"]["plural"], definition["metadata"]["name"]

        def served() -> bool:
            conditions = self.definition(name).get("status", {}).get("conditions") or []
            established = any(item["type"] == "Established" and item["status"] == "True" for item in conditions)
            return established and self._get(f"{self._resources}/{plural}").is_success

        until(served, f"{name} is served")

    def _get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return read_again(lambda: self._http.get(path, headers=headers))

    @staticmethod
    def _json(answer: httpx.Response) -> Json:
        content = answer.json()
        if answer.is_error:
            raise RefusedError(answer.status_code, content["message"])
        return dict(content)


def load(path: Path) -> list[Json]:
    """Return the objects of a file of YAML."""
    return list(yaml.safe_load_all(path.read_text()))


def _strict(*, dry_run: bool = False) -> dict[str, str]:
    return {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
