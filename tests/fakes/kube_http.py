"""An API server as the command line meets it: a real transport over objects in memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
from lightkube.config.kubeconfig import KubeConfig

from segserve.platforms.cluster.calls import Calls
from segserve.platforms.cluster.platform import ClusterPlatform
from segserve.platforms.port import Cluster

Json = dict[str, Any]
WATCH_S = 0.02
Answer = Callable[[httpx2.Request], httpx2.Response]

CONFIG = {
    "clusters": [{"name": "here", "cluster": {"server": "http://api.test"}}],
    "users": [{"name": "me", "user": {}}],
    "contexts": [{"name": "test", "context": {"cluster": "here", "user": "me", "namespace": "lab"}}],
    "current-context": "test",
}


def refusal(code: int, message: str, **details: Any) -> httpx2.Response:
    """Return the answer of an API server that refuses."""
    return httpx2.Response(code, json={"kind": "Status", "message": message, "details": details})


@dataclass
class FakeServer:
    """Objects by path (`.../segmentationmodels/coins`); `answers` go before them, by method and path."""

    objects: dict[str, Json] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    requests: list[httpx2.Request] = field(default_factory=list)

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
        return ClusterPlatform(self.calls(), Cluster(**place))

    def calls(self) -> Calls:
        config = KubeConfig.from_dict(CONFIG).get()
        assert config is not None
        return Calls(config, httpx2.MockTransport(self._answer))

    def sent(self, method: str) -> list[tuple[str, Json]]:
        """Return path and body of the requests of a method."""
        return [(each.url.path, json.loads(each.content or b"{}")) for each in self.requests if each.method == method]

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        path, method = request.url.path, request.method
        if (method, path) in self.answers:
            return self.answers[method, path](request)
        if method == "GET" and path in self.objects:
            return httpx2.Response(200, json=self.objects[path])
        if method == "GET" and (found := self._list(request)) is not None and "watch" in request.url.params:
            return self._watch(found)
        if method == "GET" and found is not None:
            return httpx2.Response(200, json={"items": found, "metadata": {"resourceVersion": "1"}})
        if method == "DELETE" and path in self.objects:
            return httpx2.Response(200, json={"kind": "Status", "metadata": self.objects.pop(path)["metadata"]})
        if method == "PATCH" and (self._kind(path) in self.kinds or path in self.objects):
            return self._patch(request)
        if self._kind(path) in self.kinds:
            return refusal(404, f"{path.rpartition('/')[2]!r} not found", name=path.rpartition("/")[2])
        return httpx2.Response(404, text="404 page not found\n")

    def _kind(self, path: str) -> str:
        base, _, rest = path.partition("/namespaces/")
        return f"{base}/{rest.split('/')[1]}" if rest.count("/") == 2 else path

    def _list(self, request: httpx2.Request) -> list[Json] | None:
        base, _, rest = request.url.path.partition("/namespaces/")
        namespace, _, plural = rest.partition("/")
        kind = f"{base}/{plural}" if rest else base
        if kind not in self.kinds:
            return None
        root, _, plural = kind.rpartition("/")
        inside = f"{root}/namespaces/{namespace}" if rest else f"{root}/namespaces/"
        found = [v for k, v in self.objects.items() if k.startswith(inside) and k.split("/")[-2] == plural]
        wanted = dict(part.split("=") for part in request.url.params.get("labelSelector", "").split(",") if part)
        return [v for v in found if wanted.items() <= v["metadata"].get("labels", {}).items()]

    def _watch(self, found: list[Json]) -> httpx2.Response:
        """Tell of all objects, and end: whoever follows lists them again."""
        time.sleep(WATCH_S)
        return httpx2.Response(200, text="\n".join(json.dumps({"type": "MODIFIED", "object": each}) for each in found))

    def _patch(self, request: httpx2.Request) -> httpx2.Response:
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
        return httpx2.Response(200, json=now)
