"""Whatever a server or the network does, a call ends in time with an answer or with one of our errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from fakes.answering_service import Handler, service
from segserve_common.api_errors import (
    ApiError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    ThrottledError,
    UnavailableError,
)
from segserve_common.kube.async_client import AsyncKubeClient
from segserve_common.kube.config import KubeConfigError
from segserve_common.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, Json, Kind
from segserve_common.kube.requests import METADATA_LIST, PAGE_SIZE, PAGE_SIZES


@asynccontextmanager
async def answered(handler: Handler, *, timeout_s: float = 30.0) -> AsyncIterator[AsyncKubeClient]:
    async with service(handler) as url, AsyncKubeClient.connect(url=url, call_timeout_s=timeout_s) as api:
        yield api


def status(code: int, message: str, **details: object) -> Json:
    return {"kind": "Status", "apiVersion": "v1", "message": message, "code": code, "details": details}


CALLS: dict[str, Callable[[AsyncKubeClient], Awaitable[object]]] = {
    "has": lambda api: api.has(DEPLOYMENTS),
    "list": lambda api: api.list(CONFIG_MAPS, None, {}),
    "versions": lambda api: api.versions(CONFIG_MAPS, "a", {}),
    "get": lambda api: api.get(CONFIG_MAPS, "a", "b"),
    "create": lambda api: api.create(CONFIG_MAPS, "a", {"metadata": {"name": "b"}}),
    "apply": lambda api: api.apply(CONFIG_MAPS, "a", {"metadata": {"name": "b"}}),
    "patch": lambda api: api.patch(CONFIG_MAPS, "a", "b", {}),
    "status": lambda api: api.patch(DEPLOYMENTS, "a", "b", {}, status=True),
    "delete": lambda api: api.delete(CONFIG_MAPS, "a", "b"),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, InvalidError),
        (401, ForbiddenError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (405, InvalidError),
        (409, ConflictError),
        (410, GoneError),
        (413, InvalidError),
        (422, InvalidError),
        (429, ThrottledError),
        (500, UnavailableError),
        (502, UnavailableError),
        (503, UnavailableError),
        (504, UnavailableError),
        (301, UnavailableError),
    ],
)
async def test_each_status_is_an_error_of_its_own(code: int, error: type[ApiError]) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(status(code, "the server's words"), status=code, headers={"Retry-After": "3"})

    async with answered(handler) as api:
        with pytest.raises(error, match=f"get .*configmaps/b: {code} the server's words") as told:
            await api.get(CONFIG_MAPS, "a", "b")

    assert type(told.value) is error
    assert told.value.retry_after_s == 3


async def test_another_object_of_the_name_is_a_conflict() -> None:
    async def handler(_: web.Request) -> web.Response:
        causes = [{"reason": "FieldValueInvalid", "message": "is immutable", "field": "metadata.uid"}]
        return web.json_response(status(422, "invalid", causes=causes), status=422)

    async with answered(handler) as api:
        with pytest.raises(ConflictError):
            await api.patch(CONFIG_MAPS, "a", "b", {"metadata": {"uid": "c"}})


@each_call
@pytest.mark.parametrize("content", [b"<html>no JSON", b"[]", b"null"])
async def test_answers_that_no_api_server_gives_are_a_server_that_fails(
    call: Callable[[AsyncKubeClient], Awaitable[object]], content: bytes
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type="text/html")

    async with answered(handler) as api:
        with pytest.raises(UnavailableError):
            await call(api)


@each_call
async def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_allowed(
    call: Callable[[AsyncKubeClient], Awaitable[object]],
) -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError

    async with answered(handler, timeout_s=0.05) as api:
        with pytest.raises(UnavailableError, match="TimeoutError"):
            await call(api)


async def test_an_answer_that_never_ends_is_waited_for_no_longer_than_allowed() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    async with answered(handler, timeout_s=0.1) as api:
        with pytest.raises(UnavailableError):
            await api.get(CONFIG_MAPS, "a", "b")


@each_call
async def test_a_connection_that_breaks_is_a_server_that_fails(
    call: Callable[[AsyncKubeClient], Awaitable[object]],
) -> None:
    async def handler(request: web.Request) -> web.Response:
        request.transport.abort()
        return web.Response()

    async with answered(handler) as api:
        with pytest.raises(UnavailableError):
            await call(api)


async def test_a_server_that_is_not_there_fails() -> None:
    async with AsyncKubeClient.connect(url="http://127.0.0.1:1") as api:
        with pytest.raises(UnavailableError, match="Connect"):
            await api.get(CONFIG_MAPS, "a", "b")


def kubeconfig(folder: Path, server: str, **user: object) -> Path:
    path = folder / "kubeconfig"
    config = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))
    return path


async def test_a_token_that_is_not_there_fails(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, "http://127.0.0.1:1", tokenFile="token")

    with pytest.raises(KubeConfigError, match=r"context 'x' .*token"):
        async with AsyncKubeClient.connect(path):
            raise AssertionError


async def test_a_token_that_is_renewed_in_its_file_is_sent(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first")
    tokens: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        tokens.append(request.headers["Authorization"])
        return web.json_response({"metadata": {}})

    async with service(handler) as url, AsyncKubeClient.connect(kubeconfig(tmp_path, url, tokenFile="token")) as api:
        await api.get(CONFIG_MAPS, "a", "b")
        (tmp_path / "token").write_text("second")
        await api.get(CONFIG_MAPS, "a", "b")
        (tmp_path / "token").unlink()
        with pytest.raises(UnavailableError, match="FileNotFoundError"):
            await api.get(CONFIG_MAPS, "a", "b")

    assert tokens == ["Bearer first", "Bearer second"]


async def test_long_lists_are_read_in_pages() -> None:
    asked: list[str] = []
    pages = {"": "one", "one": "two", "two": ""}

    async def handler(request: web.Request) -> web.Response:
        before = request.query.get("continue", "")
        size = PAGE_SIZE if request.headers["Accept"] == METADATA_LIST else PAGE_SIZES[CONFIG_MAPS]
        assert request.query["limit"] == str(size)
        assert request.query["labelSelector"] == "a=b,c=d"
        asked.append(before)
        item = {"metadata": {"namespace": "a", "name": f"after-{before}", "resourceVersion": "7", "managedFields": []}}
        return web.json_response({"metadata": {"continue": pages[before]}, "items": [item]})

    async with answered(handler) as api:
        found = await api.list(CONFIG_MAPS, None, {"c": "d", "a": "b"})
        versions = await api.versions(CONFIG_MAPS, "a", {"c": "d", "a": "b"})

    assert asked == ["", "one", "two"] * 2
    assert [item["metadata"]["name"] for item in found] == ["after-", "after-one", "after-two"]
    assert not any("managedFields" in item["metadata"] for item in found)
    assert versions == {("a", "after-"): "7", ("a", "after-one"): "7", ("a", "after-two"): "7"}


async def test_a_conflict_on_deleting_counts_only_where_the_object_is_the_one_meant() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.method == "DELETE":
            return web.json_response(status(409, "busy"), status=409)
        return web.json_response({"metadata": {"name": "b", "uid": "now"}})

    async with answered(handler) as api:
        await api.delete(CONFIG_MAPS, "a", "b", uid="before")
        with pytest.raises(ConflictError):
            await api.delete(CONFIG_MAPS, "a", "b", uid="now")
        with pytest.raises(ConflictError):
            await api.delete(CONFIG_MAPS, "a", "b")


async def test_names_cannot_leave_their_place_in_the_path() -> None:
    paths: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        paths.append(request.raw_path)
        return web.json_response({"metadata": {}})

    async with answered(handler) as api:
        await api.get(CONFIG_MAPS, "a", "b/../c?d")

    assert paths == ["/api/v1/namespaces/a/configmaps/b%2F..%2Fc%3Fd"]


async def test_each_request_is_told_with_its_outcome() -> None:
    told: list[tuple[str, str, int]] = []

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(status(404, "no") | {"metadata": {}}, status=404 if request.method == "PATCH" else 200)

    def on_call(verb: str, kind: Kind, code: int, seconds: float) -> None:
        assert seconds >= 0
        told.append((verb, kind.name, code))

    async with service(handler) as url, AsyncKubeClient.connect(url=url, on_call=on_call) as api:
        await api.get(CONFIG_MAPS, "a", "b")
        with pytest.raises(NotFoundError):
            await api.patch(DEPLOYMENTS, "a", "b", {}, status=True)
    async with AsyncKubeClient.connect(url=url, on_call=on_call) as api:
        with pytest.raises(UnavailableError):
            await api.delete(CONFIG_MAPS, "a", "b")

    assert told == [("get", "ConfigMap", 200), ("status", "Deployment", 404), ("delete", "ConfigMap", 0)]
