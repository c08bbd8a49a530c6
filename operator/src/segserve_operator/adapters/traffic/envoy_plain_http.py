"""Renders the filters that translate plain HTTP, an image as a body, into KServe v2 and its answers into JSON.

The path is translated in front of the gateway's own routes, and the body behind access and limits: these, weights,
copies and counts are as for any request. Neither an image nor an answer's masks are parsed. Both are held until they
are whole: a script that changes a body as it arrives leaves it with the length of its first piece, and what follows
would be another request. So both have bounds of their own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.metadata import version
from importlib.resources import files
from string import Template
from typing import Final

from segserve_builder.imaging.json_image import MAX_FILE_BYTES
from segserve_builder.openapi import describe_gateway
from segserve_operator.adapters.traffic.envoy_extensions import (
    body_buffer,
    details_filter,
    extension,
    header_filter,
    header_matches,
    http_reply,
    lua_filter,
    status_filter,
    text_reply,
    unless,
)
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.core.traffic import Route, TrafficPlan

_NAME: Final = "segserve.plain_http"
"""Name of the filter that translates, of the metadata of a route that has the names of classes, and of the dynamic
metadata that has the path of a request as it came in, and its method."""
PLAIN_HEADER: Final = "x-segserve-plain"
"""Header of a request that is translated."""
MAX_PLAIN_BYTES: Final = MAX_FILE_BYTES
"""Most bytes of an image, and of an answer."""
_ENVELOPE_BYTES: Final = 4096
"""Most bytes of a body of JSON beside an image in base64."""
_MAX_HELD_BYTES: Final = 4 * MAX_PLAIN_BYTES
"""Most bytes of all answers that a thread translates at once."""
PROBES: Final = ("/healthz", "/readyz")
"""Paths that need no credentials; the script has the paths of KServe v2 that answer them."""
_PAGE: Final = "/index.html"
"""What a browser gets at `/`; it loads nothing, and its script puts its own address into the example."""
_DOCS: Final = "/docs"
"""A page that sends requests to the gateway alone."""
_FILES: Final = {_PAGE: "page.html", _DOCS: "docs.html"}
_PROBE_BYTES: Final = 4096
"""Most bytes of a probe's body. An error in answer to it has to fit as well."""
_PROBE: Final = f"({'|'.join(PROBES)}).*"


def noting_filters(*, enabled: bool) -> list[Json]:
    """Return the filter that notes a request's path and method, ahead of those that may refuse it."""
    if not enabled:
        return []
    rules = [
        {"header": f":{key}", "on_header_present": {"metadata_namespace": _NAME, "key": key, "type": "STRING"}}
        for key in ("path", "method")
    ]
    return [
        extension(
            "envoy.filters.http.header_to_metadata",
            "extensions.filters.http.header_to_metadata.v3.Config",
            request_rules=rules,
        )
    ]


def head_filters(*, enabled: bool) -> list[Json]:
    """Return the filters that bound probes and translate the path of a request, after the one that names its caller."""
    if not enabled:
        return []
    # Strangers may send them, and a server reads all that it gets.
    probes = header_matches(":path", {"safe_regex": {"google_re2": {}, "regex": _PROBE}})
    return [_held_where(probes, _PROBE_BYTES), _translation(is_head=True)]


def image_filters(max_request_bytes: int, *, enabled: bool) -> list[Json]:
    """Return the filter that holds an image until it is whole, and refuses a larger one (413)."""
    bounds = {"1": _bound(max_request_bytes), "json": _json_bound(max_request_bytes)}
    held = [_held_where(header_matches(PLAIN_HEADER, {"exact": mark}), most) for mark, most in bounds.items()]
    return held if enabled else []


def translation_filters(max_request_bytes: int, *, enabled: bool) -> list[Json]:
    """Return the filter that translates bodies, after the access and limits of the request's model."""
    bounds = {"MAX_BYTES": _bound(max_request_bytes), "MAX_JSON_BYTES": _json_bound(max_request_bytes)}
    return [_translation(is_head=False, **bounds)] if enabled else []


def _bound(max_request_bytes: int) -> int:
    """Return the most bytes of an image, with what the gateway writes before it."""
    return min(max_request_bytes, MAX_PLAIN_BYTES)


def _json_bound(max_request_bytes: int) -> int:
    """Return the most bytes of a body of JSON whose image has as many as are allowed."""
    return min(max_request_bytes, 4 * _bound(max_request_bytes) // 3 + _ENVELOPE_BYTES)


def _translation(*, is_head: bool, **bounds: int) -> Json:
    answers = {"MOST_ANSWER_BYTES": MAX_PLAIN_BYTES, "MOST_HELD_BYTES": _MAX_HELD_BYTES}
    script = lua_filter(
        "plain_http.lua", IS_HEAD=is_head, NOTED=_NAME, MARK=PLAIN_HEADER, PAGE=_PAGE, **bounds, **answers
    )
    return {**script, "name": _NAME}


def _held_where(predicate: Json, most_bytes: int) -> Json:
    """Return the filter that holds a request that matches until it is whole; a larger one is refused (413)."""
    return unless({"not_matcher": predicate}, body_buffer(most_bytes))


def class_names_of_route(route: Route) -> Json:
    """Return the part of an inference route's metadata that has the names of classes, in JSON, by group and id."""
    names = {
        share.group: {str(number): json.dumps(name) for number, name in share.classes}
        for share in route.shares
        if share.classes
    }
    return {_NAME: names} if names else {}


def translation_replies(max_request_bytes: int, *, enabled: bool) -> list[Json]:
    """Return the mappers of large images, and of refusals by the translation, which are sentences already."""
    if not enabled:
        return []
    is_plain = {"header_filter": {"header": {"name": PLAIN_HEADER, "present_match": True}}}
    bound = _bound(max_request_bytes)
    large = f"the image is too large for plain HTTP: at most {bound} bytes are allowed"
    if bound < max_request_bytes:
        large += f", and {max_request_bytes} by POST /v2/models/NAME/infer"
    refused = details_filter(".startsWith('lua_response')")
    return [
        http_reply([status_filter(413), is_plain], large),
        http_reply([status_filter(400), refused], "%LOCAL_REPLY_BODY%"),
    ]


def document_replies(*, enabled: bool) -> list[Json]:
    """Return the mappers of the documents, which go as they are, and of probes with a body."""
    if not enabled:
        return []
    matched = [status_filter(200), details_filter(" == 'direct_response'")]
    with_body = [status_filter(413), header_filter(":path", {"safe_regex": {"regex": _PROBE}})]
    return [
        *(
            text_reply([*matched, header_filter(":path", {"prefix": path})], "text/html; charset=utf-8", _headers(path))
            for path in _FILES
        ),
        text_reply(matched, "application/json", {"vary": "accept"}),
        http_reply(with_body, "a probe needs no body"),
    ]


def _headers(page: str) -> dict[str, str]:
    """Return the headers of a page, which allow its own style, and its own script to call the gateway."""
    text = _template(page)
    sources = ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    for kind in ("style", "script"):
        content = text.partition(f"<{kind}>")[2].partition(f"</{kind}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        sources += [f"{kind}-src 'sha256-{digest}'"] if content else []
    sources += ["connect-src 'self'"] if "fetch(" in text else []
    return {
        "content-security-policy": "; ".join(sources),
        "referrer-policy": "no-referrer",
        "vary": "accept",
        "x-content-type-options": "nosniff",
    }


def documents(plan: TrafficPlan) -> dict[str, str]:
    """Return what the gateway answers by itself, by path: an index with links, as JSON and as a page, and OpenAPI.

    They name the models only if all models admit all callers: the caller is not looked at.
    """
    names = None if plan.is_restricted else [route.model for route in plan.routes]
    models = [
        {"name": name, "segment": f"/v1/models/{name}:segment", "kserve": f"/v2/models/{name}"} for name in names or ()
    ]
    release = version("segserve")
    index = {
        "name": "segserve",
        "version": release,
        **({} if names is None else {"models": models}),
        "links": {"openapi": "/openapi.json", "docs": _DOCS, "health": "/healthz", "ready": "/readyz", "kserve": "/v2"},
    }
    document = json.dumps(describe_gateway(names, version=release))
    listed = {} if names is None else {"/v1/models": json.dumps({"models": models}) + "\n"}
    pages = {_PAGE: _page(names, release), _DOCS: _template(_DOCS)}
    return {"/": json.dumps(index) + "\n", **pages, "/openapi.json": document + "\n", **listed}


@cache
def _template(page: str) -> str:
    return files("segserve_operator.adapters.traffic").joinpath(_FILES[page]).read_text()


def _page(names: Sequence[str] | None, release: str) -> str:
    """Return the page; without `names` it lists no model."""
    models = "<p>No model is served yet.</p>"
    if names is None:
        models = "<p>The models are not for everybody, so they are not listed here.</p>"
    elif names:
        models = f"<ul>{''.join(f'<li>{escape(name)}</li>' for name in names)}</ul>"
    example = f"/v1/models/{escape(names[0]) if names else 'NAME'}:segment"
    return Template(_template(_PAGE)).substitute(version=escape(release), models=models, example=example)
