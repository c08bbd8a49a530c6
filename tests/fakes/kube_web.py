"""The API server in memory behind HTTP, as far as `kubectl` and `segserve` read it and change resources."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import yaml
from aiohttp import web

from bench.ports import free_port
from fakes.cluster_world import NAMESPACE, ClusterWorld
from segserve_common.api_errors import ApiError
from segserve_common.kube import kinds
from segserve_common.kube.kinds import Kind
from tools import ROOT

Json = dict[str, Any]

DEFINITIONS: Final = ROOT / "charts/segserve/crd-files"
_SERVED: Final = tuple(sorted((each for each in vars(kinds).values() if isinstance(each, Kind)), key=lambda k: k.root))
_PATH: Final = re.compile(r"(/api/v1|/apis/[^/]+/[^/]+)/(?:namespaces/([^/]+)/)?([^/]+)(?:/([^/]+))?(?:/([^/]+))?")
_STEP: Final = re.compile(r"\w+\[[^]]*\]|\w+")
_CONDITION: Final = re.compile(r'(\w+)\[\?\(@\.type=="(\w+)"\)\]')


@asynccontextmanager
async def api_server(world: ClusterWorld, folder: Path, logs: Callable[[str, str], str]) -> AsyncIterator[Path]:
    """Serve a world's objects while the block runs, and yield a kubeconfig; `logs` has the text of a container."""
    application, port = web.Application(client_max_size=2**22), free_port()
    application.router.add_route("*", "/{path:.*}", partial(_answer, world, logs))
    # Open watches end with it; aiohttp would wait for ever if told to wait for no time.
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
            "current-context": "test",
        }
        (folder / "kubeconfig").write_text(yaml.safe_dump(config))
        yield folder / "kubeconfig"
    finally:
        await runner.cleanup()


async def _answer(world: ClusterWorld, logs: Callable[[str, str], str], request: web.Request) -> web.StreamResponse:
    if (discovered := _discovery(request.path)) is not None:
        return web.json_response(discovered)
    matched = _PATH.fullmatch(request.path)
    kind = next((each for each in _SERVED if matched and (each.root, each.plural) == (matched[1], matched[3])), None)
    if matched is None or kind is None:
        return _status(404, f"there is nothing at {request.path}")
    namespace, name, part = matched[2], matched[4], matched[5]
    try:
        match request.method:
            case "GET" if name is None and "watch" in request.query:
                return await _watch(world, kind, request)
            case "GET" if name is None:
                return _shown(kind, _listed(world, kind, namespace, request.query), request, whole=True)
            case "GET" if part == "log":
                return web.Response(text=logs(name, request.query.get("container", "")))
            case "GET":
                return _shown(kind, [await world.kube.get(kind, namespace, name)], request, whole=False)
            case "PATCH":
                return web.json_response(
                    _patched(world, kind, namespace, name, request, json.loads(await request.text()))
                )
            case "DELETE":
                world.kube.remove(kind, namespace, name)
                return web.json_response({"kind": "Status", "metadata": {}, "status": "Success"})
            case _:
                return _status(405, f"{request.method} is not served")
    except ApiError as error:
        return _status(int(error.status or 404), str(error), name=name)


def _status(code: int, message: str, **details: Any) -> web.Response:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return web.json_response({**status, "message": message, "details": details}, status=code)


def _discovery(path: str) -> Json | None:
    """Return what tells a client which kinds there are, where the path is of that."""
    groups = {group: list(each) for group, each in groupby(_SERVED, lambda kind: kind.root)}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        roots = [each[0] for root, each in groups.items() if root != "/api/v1"]
        named = [(kind.group, {"groupVersion": kind.api_version, "version": kind.version}) for kind in roots]
        listed = [{"name": group, "versions": [version], "preferredVersion": version} for group, version in named]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    if path not in groups:
        return None
    verbs = {"verbs": ["delete", "get", "list", "patch", "watch"]}
    resources = [
        {
            "name": kind.plural,
            "kind": kind.name,
            "namespaced": kind.namespaced,
            "singularName": kind.name.lower(),
            "shortNames": _definition(kind)[0],
            **verbs,
        }
        for kind in groups[path]
    ]
    version = groups[path][0].api_version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


@cache
def _definition(kind: Kind) -> tuple[list[str], list[Json]]:
    """Return the short names and the printed columns of a kind; none unless it is one of ours."""
    file = DEFINITIONS / f"{kind.group}_{kind.plural}.yaml"
    if not file.exists():
        return [], []
    spec = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]
    return spec["names"]["shortNames"], spec["versions"][0]["additionalPrinterColumns"]


def _listed(world: ClusterWorld, kind: Kind, namespace: str | None, query: Mapping[str, str]) -> list[Json]:
    labels, fields = (
        dict(part.split("=") for part in query.get(f"{which}Selector", "").split(",") if part)
        for which in ("label", "field")
    )
    found = world.kube.all(kind, namespace, labels)
    return [each for each in found if all(str(_field(each, path)) == value for path, value in fields.items())]


def _field(item: Any, path: str) -> Any:
    """Return what a path of a definition's column leads to, None where there is nothing."""
    for step in _STEP.findall(path):
        condition = _CONDITION.fullmatch(step)
        if condition is None:
            item = (item or {}).get(step)
        else:
            item = next((each for each in (item or {}).get(condition[1]) or () if each["type"] == condition[2]), None)
    return item


def _shown(kind: Kind, items: list[Json], request: web.Request, *, whole: bool) -> web.Response:
    if "as=Table" in request.headers.get("Accept", ""):
        printed = _definition(kind)[1]
        columns = [{"name": "Name", "type": "string", "format": "name"}]
        columns += [{"name": column["name"], "type": column["type"], "format": ""} for column in printed]
        described = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
        rows = [
            {
                "cells": [each["metadata"]["name"], *(_field(each, column["jsonPath"]) for column in printed)],
                "object": {**described, "metadata": each["metadata"]},
            }
            for each in items
        ]
        table = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "1"}}
        return web.json_response({**table, "columnDefinitions": columns, "rows": rows})
    if not whole:
        return web.json_response(items[0])
    metadata = {"resourceVersion": "1"}
    return web.json_response(
        {"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": metadata, "items": items}
    )


def _patched(world: ClusterWorld, kind: Kind, namespace: str, name: str, request: web.Request, patch: Json) -> Json:
    manager = request.query.get("fieldManager", "kubectl")
    if "apply-patch" not in request.headers["Content-Type"]:
        return world.kube.edit(kind, namespace, name, patch, manager=manager)
    if "dryRun" in request.query:
        live = world.kube.peek(kind, namespace, name) or {}
        return {**live, **patch, "metadata": {"resourceVersion": "0", **live.get("metadata", {}), **patch["metadata"]}}
    world.apply(patch)
    applied = world.kube.peek(kind, namespace, name)
    assert applied is not None
    return applied


async def _watch(world: ClusterWorld, kind: Kind, request: web.Request) -> web.StreamResponse:
    """Send the objects as they are, and each change of one."""
    changes: asyncio.Queue[Json] = asyncio.Queue()
    selected = partial(_listed, world, kind, NAMESPACE, request.query)
    watch = world.kube.subscribe(lambda type_, _, item: changes.put_nowait({"type": type_, "object": item}), [kind])
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        for item in selected():
            await response.write(json.dumps({"type": "MODIFIED", "object": item}).encode() + b"\n")
        while True:
            change = await changes.get()
            if change["type"] == "DELETED" or change["object"] in selected():
                await response.write(json.dumps(change).encode() + b"\n")
    except ConnectionResetError:
        return response
    finally:
        watch.close()
