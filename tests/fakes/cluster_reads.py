"""Reads of a cluster by the names that kubectl takes, without its start: tests look many times a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fakes.waiting import until
from segserve_common.api_errors import NotFoundError, UnavailableError
from segserve_common.kube.client import KubeClient
from segserve_common.kube.kinds import Kind
from segserve_common.kube.requests import with_type, without_managed_fields

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ClusterReads:
    """What `client` reads, again while the API server does not answer."""

    client: KubeClient
    _kinds: dict[str, Kind] = field(default_factory=dict)

    def one(self, namespace: str, kind: str, name: str) -> Json | None:
        """Return an object, None where it is missing."""
        found = self._kind(kind)
        try:
            return without_managed_fields(self._json(found.path(namespace, name)))
        except NotFoundError:
            return None

    def all(self, namespace: str, kinds: str, labels: str = "") -> list[Json]:
        """Return the objects of one kind or of several, separated by commas, that have all labels."""
        selected = {"labelSelector": labels} if labels else {}
        return [
            item
            for kind in map(self._kind, kinds.split(","))
            for item in with_type(self._json(kind.path(namespace), selected)["items"], kind)
        ]

    def _kind(self, word: str) -> Kind:
        """Return the kind of a name; AssertionError where the server has none."""
        if word not in self._kinds:
            self._discover()
        assert word in self._kinds, f"the cluster has no kind {word!r}"
        return self._kinds[word]

    def _discover(self) -> None:
        """Take up all names of what is served; of two groups with the same name the first has it, as for kubectl."""
        groups = self._json("/apis")["groups"]
        for version in ("v1", *(group["preferredVersion"]["groupVersion"] for group in groups)):
            group, _, number = version.rpartition("/")
            try:
                served = self._json(f"/apis/{version}" if group else f"/api/{version}")["resources"]
            except NotFoundError:  # its definition was removed meanwhile
                continue
            for found in served:
                if "/" not in found["name"]:
                    kind = Kind(group, number, found["kind"], found["name"], found["namespaced"])
                    singular = found["singularName"] or kind.name.lower()
                    for name in (kind.plural, f"{kind.plural}.{group}", singular, *found.get("shortNames", ())):
                        self._kinds.setdefault(name, kind)

    def _json(self, path: str, params: dict[str, str] | None = None) -> Json:
        answer: Json = json.loads(_answered(lambda: self.client.text(path, params)))
        return answer


def _answered(read: Callable[[], str]) -> str:
    answers: list[str] = []

    def is_answered() -> bool:
        try:
            answers.append(read())
        except UnavailableError:
            return False
        return True

    until(is_answered, "an answer of the API server")
    return answers[0]
