"""An API server as the command line meets it: a real transport over objects in memory."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import urllib3
from kubernetes.client.configuration import Configuration

from segserve.platform import Cluster
from segserve_platform.platforms.cluster.context_client import ContextClient
from segserve_platform.platforms.cluster.platform import ClusterPlatform

Json = dict[str, Any]
WATCH_S = 0.02
Answer = Callable[[httpx.Request], httpx.Response]

CONFIG = {
    "clusters": [{"name": "here", "cluster": {"server": "http://api.test"}}],
    "users": [{"name": "me", "user": {}}],
    "contexts": [{"name": "test", "context": {"cluster": "here", "user": "me", "namespace": "lab"}}],
    "current-context": "test",
}


def refusal(code: int, message: str, **details: Any) -> httpx.Response:
    """Return the answer of an API server that refuses."""
    return httpx.Response(code, json={"kind": "Status", "message": message, "details": details})


class _Body(io.RawIOBase):
    """An answer's content as a socket gives it: piece by piece."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def read1(self, size: int = -1) -> bytes:
        return self.read(size if size >= 0 else 2**16) or b""


class FakePool(urllib3.PoolManager):
    """A connection pool whose requests a function answers."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        request = httpx.Request(method, url, headers=dict(options["headers"]), content=options.get("body"))
        try:
            response = self._answer(request)
        except httpx.ConnectError as error:
            raise urllib3.exceptions.HTTPError(str(error)) from error
        return urllib3.HTTPResponse(
            body=_Body(iter([response.content]) if response.is_stream_consumed else response.iter_raw()),
            headers={name: value for name, value in response.headers.items() if name != "transfer-encoding"},
            status=response.status_code,
            preload_content=options["preload_content"],
            request_method=method,
        )


@dataclass
class FakeServer:
    """Objects by path (`.../segmentationmodels/coins`); `answers` go before them, by method and path."""

    objects: dict[str, Json] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    requests: list[httpx.Request] = field(default_factory=list)

    def put(self, root: str, *items: Json, namespace: str = "lab") -> None:
        """Add objects of a kind, such as `apis/apps/v1/deployments`."""
        base, _, plural = root.rpartition("/")
        self.kinds.add(f"/{base}/{plural}")
        for item in items:
            item["metadata"].setdefault("namespace", namespace)
            item["metadata"].setdefault("resourceVersion", "1")
            path = f"/{base}/namespaces/{item['metadata']['namespace']}/{plural}/{item['metadata']['name']}"
            self.objects[path] = item

    def platform(self, **place: Any) -> ClusterPlatform:
        return ClusterPlatform(self.client(), Cluster(**place))

    def client(self) -> ContextClient:
        return ContextClient("test", Configuration(host="http://api.test"), "lab", FakePool(self._answer))

    def sent(self, method: str) -> list[tuple[str, Json]]:
        """Return path and body of the requests of a method."""
        return [(each.url.path, json.loads(each.content or b"{}")) for each in self.requests if each.method == method]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path, method = request.url.path, request.method
        if (method, path) in self.answers:
            return self.answers[method, path](request)
        if method == "GET" and path in self.objects:
            return httpx.Response(200, json=self.objects[path])
        if method == "GET" and (found := self._list(request)) is not None and "watch" in request.url.params:
            return self._watch(found)
        if method == "GET" and found is not None:
            return httpx.Response(200, json={"items": found, "metadata": {"resourceVersion": "1"}})
        if method == "DELETE" and path in self.objects:
            return httpx.Response(200, json={"kind": "Status", "metadata": self.objects.pop(path)["metadata"]})
        if method == "PATCH" and (self._kind(path) in self.kinds or path in self.objects):
            return self._patch(request)
        if self._kind(path) in self.kinds:
            return refusal(404, f"{path.rpartition('/')[2]!r} not found", name=path.rpartition("/")[2])
        return httpx.Response(404, text="404 page not found\n")

    def _kind(self, path: str) -> str:
        base, _, rest = path.partition("/namespaces/")
        return f"{base}/{rest.split('/')[1]}" if rest.count("/") == 2 else path

    def _list(self, request: httpx.Request) -> list[Json] | None:
        base, _, rest = request.url.path.partition("/namespaces/")
        namespace, _, plural = rest.partition("/")
        kind = f"{base}/{plural}" if rest else base
        if kind not in self.kinds:
            return None
        root, _, plural = kind.rpartition("/")
        inside = f"{root}/namespaces/{namespace}" if rest else f"{root}/namespaces/"
        found = [v for k, v in self.objects.items() if k.startswith(inside) and k.split("/")[-2] == plural]
        wanted = dict(part.split("=") for part in request.url.params.get("labelSelector", "").split(",") if part)
        fields = dict(part.split("=") for part in request.url.params.get("fieldSelector", "").split(",") if part)
        labelled = [v for v in found if wanted.items() <= v["metadata"].get("labels", {}).items()]
        return [v for v in labelled if all(_field(v, path) == value for path, value in fields.items())]

    def _watch(self, found: list[Json]) -> httpx.Response:
        """Send all objects, and an expired version: whoever follows lists them again."""
        time.sleep(WATCH_S)
        events = [{"type": "MODIFIED", "object": each} for each in found]
        expired = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
        return httpx.Response(200, text="\n".join(map(json.dumps, [*events, expired])))

    def _patch(self, request: httpx.Request) -> httpx.Response:
        body, path = json.loads(request.content), request.url.path
        former = self.objects.get(path, {"metadata": {"resourceVersion": "0"}})
        born = {"creationTimestamp": "2026-01-01T00:00:00Z"}
        generation = former["metadata"].get("generation", 0) + (former.get("spec") != body.get("spec"))
        kept = {**born, **former["metadata"], **body["metadata"], "resourceVersion": "2", "generation": generation}
        if notes := {**former["metadata"].get("annotations", {}), **body["metadata"].get("annotations", {})}:
            kept["annotations"] = notes
        now = {**former, **body, "metadata": kept}
        if "dryRun" not in request.url.params:
            self.objects[path] = now
        return httpx.Response(200, json=now)


def _field(item: Json, path: str) -> str:
    value: Any = item
    for key in path.split("."):
        value = value.get(key, {})
    return str(value)
