"""The page's routes: static files, and the JSON and captured images that its scripts read."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from mimetypes import guess_type
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from segserve import errors
from segserve.calls.prompts import read_prompts
from segserve.exports.formats import FORMATS
from segserve.platform import Cluster
from segserve.results.images import picture
from segserve.results.objects import InstanceResult
from segserve_common.errors import BadRequestError, SegserveError
from segserve_platform.image_content import image_content
from segserve_platform.platforms.activity import PROMETHEUS_WINDOW_S, WINDOW_S
from segserve_platform.platforms.errors import (
    ConflictError,
    ControlError,
    ForbiddenError,
    NoPlatformError,
    NotFoundError,
    PlatformUnreachableError,
    WaitTimeoutError,
)
from segserve_platform.platforms.port import Json
from segserve_platform.platforms.rollouts.actions import run_action
from segserve_ui.answers import GoneAnswerError, KeptAnswers, KeptBatches, describe_answer, without
from segserve_ui.backend import Backend, UiPlatform, body_limit_bytes
from segserve_ui.calls import calls
from segserve_ui.guard import Guard, PageAccess
from segserve_ui.history import describe_history
from segserve_ui.models import ModelsList, ModelsOverview, StoredModels, example_images
from segserve_ui.prompts import Prompts
from segserve_ui.rollouts import VERBS, RolloutsOverview, draw_pairs
from segserve_ui.words import GONE, gone, page_text

if TYPE_CHECKING:
    from segserve_builder.capture.store import ManifestRow, SampleStore

STATIC: Final = Path(__file__).parent / "static"
REFRESH_S: Final = 2.0
"""Interval in which the platform is read, however many pages are open."""
ACTION_S: Final = 10.0
HISTORY_S: Final = 20.0
PREVIEW_PX: Final = 2400
THUMBNAIL_PX: Final = 440
DIGITS: Final = 9
DOCS: Final = frozenset({"collect-samples.md", "look.md", "roll-out.md", "tutorial.md"})
"""The pages of the documentation that empty pages link to; `pyproject.toml` puts them into the wheel."""
CLASSES: Final = 1000
"""Hidden classes that a download may name."""
STATUSES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (errors.RequestTooLargeError, 413),
    (BadRequestError, 400),
    (ClientDisconnect, 400),  # the client has gone
    (errors.ModelNotFoundError, 404),
    (NotFoundError, 404),
    (GoneAnswerError, 404),
    (ConflictError, 409),
    (ForbiddenError, 403),
    (errors.PermissionDeniedError, 403),
    (errors.AuthenticationError, 502),
    (WaitTimeoutError, 504),
    (errors.RequestTimeoutError, 504),
    (errors.OverloadedError, 503),
    (NoPlatformError, 503),
    (PlatformUnreachableError, 503),
    (errors.GatewayUnreachableError, 503),
    (SegserveError, 502),
)
"""The status that each error has on the page, the first that fits."""
T = TypeVar("T")
NEWEST: Final = 1000
"""Samples of a model that are read, the newest; `segserve samples` lists older ones."""
SHOWN: Final = 60
KEPT: Final = 5000
"""Samples whose classes are kept in memory: they never change."""
PICTURES: Final = frozenset({"image/jpeg", "image/png", "image/webp", "image/tiff"})


class Samples:
    """The samples of this machine's models; a cluster keeps its own where this process may have no rights."""

    def __init__(self, place: UiPlatform) -> None:
        self._place = place
        self._classes: dict[str, Mapping[str, int]] = {}

    def read(self, stored: StoredModels, model: str, reason: str, class_name: str) -> Json:
        """Return the `models` that keep samples, and of one of them `samples`, `reasons` and `classes` with counts.

        An empty `model` is the first, an empty `reason` or `class_name` any. Raises `BadRequestError` for an unknown
        reason, and `NotFoundError` for a model that keeps no samples.
        """
        if isinstance(self._place.ref, Cluster):
            note = "Samples of a cluster are listed by a command, which reads them with your rights."
            return {"models": [], "samples": [], "note": note, "example": "segserve samples list MODEL"}
        from segserve_builder.capture.rule import CaptureReason

        if reason and reason not in tuple(CaptureReason):
            raise BadRequestError(f"reason is {reason!r}; allowed: {', '.join(CaptureReason)}")
        sinks = _sinks(stored)
        if not model and not sinks:
            note = "No model has `spec.capture`: with it a model keeps some requests for people to label."
            example = "spec:\n  capture:\n    when: [uncertain]\n    sink: file:///home/me/samples"
            return {"models": [], "samples": [], "note": note, "example": example}
        model = model or next(iter(sinks))
        with self._opened(model, sinks) as store:
            rows = list(store.rows(model, newest=NEWEST))[::-1]
            found = [(row, self._classes_of(store, row)) for row in rows]
        chosen = [row for row, classes in found if (not reason or reason in row.reasons)
                  and (not class_name or class_name in classes)]  # fmt: skip
        return {
            "models": list(sinks),
            "model": model,
            "total": len(chosen),
            "reasons": Counter(each.value for row in rows for each in row.reasons),
            "classes": Counter(name for _, classes in found for name in classes),
            "samples": [_described(row, self._classes[row.key]) for row in chosen[:SHOWN]],
        }

    def image(self, stored: StoredModels, model: str, key: str) -> tuple[bytes, str]:
        """Return the image of a sample as it was kept, and its media type."""
        if isinstance(self._place.ref, Cluster):
            raise NotFoundError("samples are only shown of this machine's platform")
        with self._opened(model, _sinks(stored)) as store:
            row = store.row(model, key)
            if row is None:
                raise NotFoundError(f"{model} has no sample {key!r}")
            kind = guess_type(row.image)[0]
            return store.image(row), kind if kind in PICTURES else "application/octet-stream"

    @contextmanager
    def _opened(self, model: str, sinks: Mapping[str, str]) -> Iterator[SampleStore]:
        from segserve_builder.capture.store import SampleStore
        from segserve_builder.errors import BuilderError
        from segserve_operator.adapters.local.access import local_access

        if model not in sinks:
            raise NotFoundError(f"{model!r} keeps no samples; these models do: {', '.join(sinks) or 'none'}")
        try:
            yield SampleStore(sinks[model], local_access())
        except BuilderError as error:
            raise ControlError(f"the samples of {model} cannot be read: {error}") from error

    def _classes_of(self, store: SampleStore, row: ManifestRow) -> Mapping[str, int]:
        """Return the number of annotations of each class in a sample."""
        if row.key not in self._classes:
            if len(self._classes) >= KEPT:
                self._classes.clear()
            document = store.coco(row) or {}
            names = {each["id"]: each["name"] for each in document.get("categories") or ()}
            found = (each.get("category_id") for each in document.get("annotations") or ())
            self._classes[row.key] = Counter(names.get(number, str(number)) for number in found)
        return self._classes[row.key]


def _sinks(stored: StoredModels) -> dict[str, str]:
    """Return where each model that keeps samples keeps them."""
    captures = {each["metadata"]["name"]: each["spec"].get("capture") or {} for each in stored.manifests}
    return {name: capture["sink"] for name, capture in captures.items() if capture.get("sink")}


def _described(row: ManifestRow, classes: Mapping[str, int]) -> Json:
    return {
        "key": row.key,
        "model": row.model,
        "revision": row.revision,
        "capturedAt": datetime.fromtimestamp(row.captured_at_s, UTC).isoformat(timespec="seconds"),
        "reasons": [each.value for each in row.reasons],
        "classes": dict(classes),
        "uncertainty": row.uncertainty,
        "disagreement": row.disagreement,
        "slice": row.slice,
        "height": row.size[0],
        "width": row.size[1],
    }


class TimedCache(Generic[T]):
    """The outcome of a function of `sources`, also an exception, to the end of a period of `every_s` seconds.

    All caches of one `every_s` end together, so that an outcome is not older than its sources' periods.
    """

    def __init__(self, read: Callable[..., T], every_s: float, *sources: TimedCache[Any]) -> None:
        self._read = read
        self._every_s = every_s
        self._sources = sources
        self._lock = asyncio.Lock()
        self._ends_s = 0.0
        self._value: T | None = None
        self._error: Exception | None = None

    async def get(self) -> T:
        """Return the latest value, read anew in a thread if it is too old; raises what the function raised."""
        async with self._lock:
            now_s = time.monotonic()
            if now_s >= self._ends_s:
                self._value, self._error = None, None
                try:
                    given = [await source.get() for source in self._sources]
                    self._value = await asyncio.to_thread(self._read, *given)
                except Exception as error:
                    self._error = error
                self._ends_s = now_s + self._every_s - now_s % self._every_s if self._every_s else now_s
            if self._error is not None:
                raise self._error.with_traceback(None)
            assert self._value is not None
            return self._value

    def clear(self) -> None:
        """Let the next `get` read anew."""
        self._ends_s = 0.0


def create_app(place: UiPlatform, access: PageAccess) -> tuple[Guard, Backend]:
    """Return the guarded application, and its backend, which is to be closed at the end."""
    backend = Backend(place)
    page = _Page(backend)
    routes = [
        Route("/", page.index),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/api/platform", page.platform),
        Route("/favicon.ico", page.icon),
        Route("/api/models", page.models),
        Route("/api/overview", page.overview),
        Route("/api/models/{model}/examples/{number:int}", page.example),
        Route("/api/rollouts", page.rollouts),
        Route("/api/rollouts/{model}/pairs", page.pairs),
        Route("/api/rollouts/{model}/{verb}", page.act, methods=["POST"]),
        Route("/api/history", page.history),
        Route("/api/samples", page.samples),
        Route("/api/samples/{model}/{key}", page.sample),
        Route("/api/segment", page.segment, methods=["POST"]),
        Route("/api/prompts", page.prompt, methods=["POST"]),
        Route("/api/prompts/{image}", page.prompt_again, methods=["POST"]),
        Route("/api/compare", page.compare, methods=["POST"]),
        Route("/api/preview", page.preview, methods=["POST"]),
        Route("/api/calls", page.calls),
        Route("/api/answers/{answer}/{format}", page.export),
        Route("/api/batches/{batch}/{format}", page.export_batch),
        Route("/api/batches/{batch}/overlays/{number:int}", page.overlay, methods=["POST"]),
        Route("/docs/{name}", page.docs),
    ]
    handlers = dict.fromkeys((SegserveError, OSError, ClientDisconnect), page.error)
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Guard(app, access), backend


class TooLargeError(errors.RequestTooLargeError):
    """An image that the gateway would not take; it was not sent."""


class _Page:
    def __init__(self, backend: Backend) -> None:
        place = backend.place
        scraped = place.metrics is not None and place.metrics.prometheus is not None
        window_s = PROMETHEUS_WINDOW_S if scraped else WINDOW_S
        self._backend = backend
        self._answers = KeptAnswers()
        self._batches = KeptBatches()
        self._samples = Samples(place)
        is_local = not isinstance(place.ref, Cluster)  # golden sets of a cluster are elsewhere
        self._pools = TimedCache(backend.pools, REFRESH_S)
        self._place = TimedCache(self._platform, REFRESH_S)
        self._stored = TimedCache(partial(StoredModels.of, place.platform), REFRESH_S)
        self._models = TimedCache(ModelsList(examples=is_local).describe, REFRESH_S, self._stored)
        self._overview = TimedCache(ModelsOverview(place.metrics, window_s).describe, REFRESH_S, self._stored)
        self._history = TimedCache(partial(describe_history, place), HISTORY_S)
        self._rollouts = TimedCache(RolloutsOverview(place.platform).describe, REFRESH_S, self._stored)

    async def index(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html")

    async def icon(self, request: Request) -> Response:
        return FileResponse(STATIC / "icon.svg")

    async def error(self, request: Request, error: Exception) -> Response:
        status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
        text, is_gone = page_text(error, self._backend.place), isinstance(error, GONE)
        return JSONResponse({"error": text, "kind": type(error).__name__, "gone": is_gone}, status_code=status)

    async def platform(self, request: Request) -> Response:
        error = None
        try:
            await self._stored.get()
        except SegserveError as raised:
            error = raised
        banner = await asyncio.to_thread(gone, error, self._backend.place)  # not of a cache: it has to be quick
        limit = body_limit_bytes(await self._pools.get())
        return JSONResponse(await self._place.get() | {"bodyLimit": limit, "gone": banner})

    def _platform(self) -> Json:
        place = self._backend.place
        where = "this machine"
        if isinstance(place.ref, Cluster):
            parts = (place.ref.context and f"context {place.ref.context}", place.ref.namespace)
            where = ", ".join(filter(None, parts)) or "the current context"
        try:
            version = place.platform.version()
        except SegserveError:
            version = None  # a user of models may not be allowed to see the operator
        return {
            "place": version.place if version is not None else where,
            "url": version.url if version is not None else "",
            "version": version.version if version is not None else "",
        }

    async def models(self, request: Request) -> Response:
        return JSONResponse(await self._models.get())

    async def overview(self, request: Request) -> Response:
        return JSONResponse(await self._overview.get())

    async def example(self, request: Request) -> Response:
        model, number = request.path_params["model"], request.path_params["number"]
        if isinstance(self._backend.place.ref, Cluster):
            raise NotFoundError("golden images are shown of this machine's platform only")
        manifests = (await self._stored.get()).manifests
        images = example_images(next((each for each in manifests if each["metadata"]["name"] == model), {}))
        if number >= len(images):
            raise NotFoundError(f"{model} has {len(images)} example images, got the number {number}")
        return FileResponse(images[number])

    async def rollouts(self, request: Request) -> Response:
        return JSONResponse(await self._rollouts.get())

    async def pairs(self, request: Request) -> Response:
        platform, model = self._backend.place.platform, request.path_params["model"]
        return JSONResponse(await asyncio.to_thread(draw_pairs, platform, model))

    async def act(self, request: Request) -> Response:
        model, verb = request.path_params["model"], request.path_params["verb"]
        if verb not in VERBS:
            raise BadRequestError(f"unknown action {verb!r}; there are: {', '.join(VERBS)}")
        platform = self._backend.place.platform
        try:
            gate = request.query_params.get("gate", "")
            text = await asyncio.to_thread(run_action, platform, model, verb, gate=gate, timeout_s=ACTION_S)
        finally:
            for cache in (self._stored, self._rollouts, self._models, self._overview):
                cache.clear()
        return JSONResponse({"text": text})

    async def history(self, request: Request) -> Response:
        return JSONResponse(await self._history.get())

    async def samples(self, request: Request) -> Response:
        given = request.query_params
        names = [given.get(name, "") for name in ("model", "reason", "class")]
        return JSONResponse(await asyncio.to_thread(self._samples.read, await self._stored.get(), *names))

    async def sample(self, request: Request) -> Response:
        model, key = request.path_params["model"], request.path_params["key"]
        image, kind = await asyncio.to_thread(self._samples.image, await self._stored.get(), model, key)
        if request.query_params.get("size") == "small":
            image, kind = await asyncio.to_thread(_preview, image, THUMBNAIL_PX), "image/jpeg"
        return Response(image, media_type=kind)

    async def segment(self, request: Request) -> Response:
        model, score = _text(request, "model"), _score(request, "score_threshold")
        image = await self._image(request)
        frame, number = _number(request, "frame"), _number(request, "number")
        result, took_ms = await asyncio.to_thread(
            lambda: self._backend.segment(model, image_content(image).image, score, frame)
        )
        if number is not None:
            batch, name = _text(request, "batch"), _text(request, "name")
            await asyncio.to_thread(self._batches.keep, batch, number, name, result)
        return _json(await asyncio.to_thread(self._described, result, took_ms))

    async def prompt(self, request: Request) -> Response:
        model, prompts, name = _text(request, "model"), _prompts(request), secrets.token_urlsafe(9)
        file = await self._image(request)
        return await self._prompted(
            request, name, lambda: self._backend.prompt(name, prompts, model, image_content(file).image)
        )

    async def prompt_again(self, request: Request) -> Response:
        name, prompts = request.path_params["image"], _prompts(request)
        return await self._prompted(request, name, lambda: self._backend.prompt(name, prompts))

    async def _prompted(self, request: Request, name: str, ask: Callable[[], tuple[Any, float]]) -> Response:
        former = request.query_params.get("before", "")
        before = self._answers.get(former) if former else None
        result, took_ms = await asyncio.to_thread(ask)
        if isinstance(before, InstanceResult):  # the objects that were selected in this image before
            result = replace(result, instances=(*before.instances, *result.instances))
        return _json(await asyncio.to_thread(self._described, result, took_ms) | {"image": name})

    async def compare(self, request: Request) -> Response:
        first, second = _text(request, "first"), _text(request, "second")
        image = await self._image(request)
        content = await asyncio.to_thread(image_content, image)
        sides, agreement = await asyncio.to_thread(self._backend.compare, first, second, content.image)
        answers = [await asyncio.to_thread(self._described, *side) for side in sides]
        return _json({"answers": answers, "agreement": agreement})

    def _described(self, result: Any, took_ms: float) -> Json:
        return describe_answer(result) | {"id": self._answers.keep(result), "tookMs": round(took_ms, 1)}

    async def preview(self, request: Request) -> Response:
        image = await self._image(request)
        return Response(await asyncio.to_thread(_preview, image), media_type="image/jpeg")

    async def calls(self, request: Request) -> Response:
        model, name = _text(request, "model"), _text(request, "name")
        caller = await asyncio.to_thread(self._backend.caller, model, await self._pools.get())
        score = _score(request, "score_threshold")
        prompts = _prompts(request)
        return JSONResponse({"calls": calls(caller, model, name, score, prompts if prompts.given else None)})

    async def export(self, request: Request) -> Response:
        kind = FORMATS.get(request.path_params["format"])
        if kind is None:
            raise BadRequestError(f"unknown format {request.path_params['format']!r}; there are: {', '.join(FORMATS)}")
        result = self._answers.get(request.path_params["answer"])
        name, hidden = _text(request, "name"), _numbers(request, "hidden")
        shown = without(result, _score(request, "min_score") or 0.0, hidden)
        content = await asyncio.to_thread(kind.encode, shown, name)
        stem = "".join(each if each.isalnum() or each in "-_." else "_" for each in Path(name).stem) or "result"
        return _download(content, f"{stem}-{request.path_params['format']}{kind.suffix}")

    async def export_batch(self, request: Request) -> Response:
        given = request.path_params
        return _download(*await asyncio.to_thread(self._batches.export, given["batch"], given["format"]))

    async def overlay(self, request: Request) -> Response:
        image, given = await self._image(request), request.path_params

        def draw() -> bytes:
            buffer = io.BytesIO()
            result = self._batches.result(given["batch"], given["number"])
            result.overlay(image_content(image).image).save(buffer, "JPEG", quality=92)
            return buffer.getvalue()

        return Response(await asyncio.to_thread(draw), media_type="image/jpeg")

    async def docs(self, request: Request) -> Response:
        name = request.path_params["name"]
        places = [
            Path(__file__).parent / "docs",
            *(Path(__file__).parents[3] / each for each in ("docs", "docs/how-to")),
        ]
        found = next((path for place in places if (path := place / name).is_file()), None)
        if name not in DOCS or found is None:
            raise NotFoundError(f"there is no page {name!r}; there are: {', '.join(sorted(DOCS))}")
        return FileResponse(found, media_type="text/plain; charset=utf-8")

    async def _image(self, request: Request) -> bytes:
        """Return the body; raises `TooLargeError` for one that the gateway would not take, without reading it all."""
        limit = body_limit_bytes(await self._pools.get())
        parts, size = [], int(request.headers.get("content-length") or 0)
        if size <= limit:
            size = 0
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    break
                parts.append(part)
        if size > limit:
            raise TooLargeError(
                f"the image has {size / 2**20:.1f} MiB; the gateway takes at most {limit / 2**20:.1f} MiB "
                "(spec.gateway.maxRequestBytes of the pool); `segserve batch` segments larger ones tile by tile"
            )
        if not size:
            raise BadRequestError("the request has no image: its body is empty")
        return b"".join(parts)


def _download(content: bytes, name: str) -> Response:
    # Never shown as a page of this origin: class names in it are the model's.
    headers = {"content-disposition": f'attachment; filename="{name.encode("ascii", "replace").decode()}"'}
    return Response(content, media_type="application/octet-stream", headers=headers)


def _json(content: Json) -> Response:
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), media_type="application/json")


def _preview(image: bytes, most_px: int = PREVIEW_PX) -> bytes:
    """Return an image as a JPEG with sides of at most `most_px`, from any format."""
    drawn = picture(image_content(image).image)
    drawn.thumbnail((most_px, most_px))
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _text(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if not value:
        raise BadRequestError(f"the request has no {name}")
    return value


def _score(request: Request, name: str) -> float | None:
    text = request.query_params.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BadRequestError(f"{name} must be a number from 0 to 1, got {text!r}")
    return value


def _prompts(request: Request) -> Prompts:
    given = request.query_params
    found = read_prompts(given.getlist("point"), given.getlist("background"), given.get("box"))
    return Prompts(tuple(found), bool(given.get("multimask")))


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text and not (text.isdecimal() and len(text) <= DIGITS):
        raise BadRequestError(f"{name} must be a whole number from 0, got {text[:80]!r}")
    return int(text) if text else None


def _numbers(request: Request, name: str) -> set[int]:
    parts = [part for part in (request.query_params.get(name) or "").split(",") if part]
    if len(parts) > CLASSES or not all(part.isdecimal() for part in parts):
        raise BadRequestError(f"{name} must be ids of classes with commas between them, got {','.join(parts)[:80]!r}")
    return set(map(int, parts))
