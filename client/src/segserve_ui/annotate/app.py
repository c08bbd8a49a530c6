"""The routes of `segserve annotate`: for Label Studio below each model's name, for CVAT in place of Nuclio."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segserve.calls.answers import EMBEDDING_ID
from segserve.calls.prompts import Box, Click
from segserve.client import Client
from segserve.errors import ModelNotFoundError, RequestTooLargeError
from segserve.exports.label_studio import Json
from segserve.rendering.display import printable
from segserve.results.objects import InstanceResult
from segserve_common.errors import BadRequestError, SegserveError
from segserve_platform.image_content import image_content
from segserve_ui.annotate import cvat
from segserve_ui.annotate.images import MAX_BYTES, TaskImages
from segserve_ui.annotate.label_studio import LabelConfig, Task, TasksRequest
from segserve_ui.app import STATUSES
from segserve_ui.prompts import PromptedImages

MAX_BODY_BYTES: Final = 2 * MAX_BYTES
"""Of a request, which for CVAT has an image in base64."""
MAX_VALUES: Final = 200_000
"""Of a request's JSON: each takes many times its bytes."""
IN_FLIGHT: Final = 4
"""Tasks of a request that are answered at a time."""
MAX_LINE: Final = 2000
Body = TypeVar("Body", bound=BaseModel)
_log = logging.getLogger(__name__)


def create_app(clients: Mapping[str, Client], images: TaskImages, hosts: Sequence[str]) -> Starlette:
    """Return the application, which serves the models behind `clients`, by name.

    It answers only to `hosts`: another name in a request is one that a web site has pointed to this machine.
    """
    annotator = _Annotator(clients, images)
    routes = [
        *(_route("GET", path, _is_up) for path in ("/", "/health", "/{model}", "/{model}/health")),
        _route("POST", "/{model}/setup", annotator.setup, TasksRequest),
        _route("POST", "/{model}/predict", annotator.predict, TasksRequest),
        _route("POST", "/{model}/webhook", _is_up),
        _route("GET", "/api/functions", lambda: {model: annotator.function(model) for model in clients}),
        _route("GET", "/api/functions/{model}", annotator.function),
        _route("POST", "/api/function_invocations", annotator.invoke, cvat.Invocation),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
    handlers = dict.fromkeys((SegserveError, ClientDisconnect), _failed)
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class _Annotator:
    def __init__(self, clients: Mapping[str, Client], images: TaskImages) -> None:
        self._clients, self._images, self._prompted = clients, images, PromptedImages()

    def setup(self, model: str, body: TasksRequest) -> Json:
        LabelConfig.parse(body.label_config)
        return {"model_version": self._client(model).model_info(model).revision or ""}

    def predict(self, model: str, body: TasksRequest) -> Json:
        client, config = self._client(model), LabelConfig.parse(body.label_config)
        if body.clicks and body.tasks:
            image = self._images.fetch(config.image_url(body.tasks[0]))
            found = self._ask(model, image, lambda size: [each.prompt(size) for each in body.clicks])
            return {"results": [config.prediction(found, body.clicks[-1].labels[0])]}
        if self._is_promptable(model):
            return {"results": [[] for _ in body.tasks]}  # there is nothing before the first click

        def answer(task: Task) -> list[Json] | SegserveError:
            try:
                image = image_content(self._images.fetch(config.image_url(task))).image
                return [config.prediction(client.segment(image, model=model))]
            except SegserveError as error:
                return error

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            answers = list(pool.map(answer, body.tasks))
        errors = [each for each in answers if isinstance(each, SegserveError)]
        if errors and len(errors) == len(answers):
            raise errors[0]
        for task, each in zip(body.tasks, answers, strict=True):
            if isinstance(each, SegserveError):
                _log.warning("task %s: %s", task.id, printable(str(each), MAX_LINE))
        # A task that cannot be answered does not take the others along.
        return {"results": [[] if isinstance(each, SegserveError) else each for each in answers]}

    def function(self, model: str) -> Json:
        return cvat.function(self._client(model).model_info(model), promptable=self._is_promptable(model))

    def invoke(self, model: str, body: cvat.Invocation) -> Json | list[Json]:
        client = self._client(model)
        if self._is_promptable(model):
            return cvat.interaction(self._ask(model, body.image, lambda _: body.prompts()))
        image = image_content(body.image).image
        return list(cvat.shapes(client.segment(image, model=model, score_threshold=body.threshold)))

    def _ask(
        self, model: str, image: bytes, prompts: Callable[[tuple[int, int]], Sequence[Click | Box]]
    ) -> InstanceResult:
        """Return the answer to the prompts about an image file, which `prompts` makes of its height and width."""
        name, content = (model, hashlib.sha256(image).digest()), image_content(image).image
        with self._prompted.taken(name, self._client(model), model, content) as prompted:
            embedded = prompted.ask() if prompted.result is None else prompted.result
            return prompted.ask(*prompts(embedded.size))

    def _client(self, model: str) -> Client:
        if model not in self._clients:
            raise ModelNotFoundError(f"no model {model!r}; this service has: {', '.join(self._clients)}")
        return self._clients[model]

    def _is_promptable(self, model: str) -> bool:
        return EMBEDDING_ID in self._client(model).model_info(model).outputs


def _is_up(model: str = "") -> Json:
    return {"status": "UP", "model_class": model}


async def _failed(request: Request, error: Exception) -> Response:
    _log.warning("%s", printable(f"{request.url.path}: {str(error) or 'the client has left'}", MAX_LINE))
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    return JSONResponse({"error": str(error), "kind": type(error).__name__}, status)


def _route(method: str, path: str, answer: Callable[..., Any], kind: type[Body] | None = None) -> Route:
    async def endpoint(request: Request) -> Response:
        if kind is None:
            return JSONResponse(await asyncio.to_thread(answer, **request.path_params))
        # A page of any web site may send other types here, and this type only if the service allows it, as it does not.
        if (sent := request.headers.get("content-type", "").partition(";")[0]) != "application/json":
            raise BadRequestError(f"Content-Type is {sent!r}; allowed is application/json")
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > MAX_BODY_BYTES:
                raise RequestTooLargeError(f"the request has more than {MAX_BODY_BYTES} bytes")
        if (values := content.count(b",") + 1) > MAX_VALUES:
            raise RequestTooLargeError(f"the request's JSON has about {values} values; allowed are {MAX_VALUES}")
        try:
            body = kind.model_validate_json(bytes(content))
        except ValidationError as error:
            raise BadRequestError(f"malformed: {str(error)[:MAX_LINE]}") from error
        model = request.path_params.get("model", request.headers.get("x-nuclio-function-name", ""))
        return JSONResponse(await asyncio.to_thread(answer, model, body))

    return Route(path, endpoint, methods=[method])
