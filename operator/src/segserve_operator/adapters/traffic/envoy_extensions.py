"""Shapes that parts of Envoy's configuration have in common: extensions, watched files, filters of local replies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from segserve_operator.adapters.traffic.envoy_clusters import TYPES, socket_address
from segserve_operator.adapters.traffic.envoy_messages import Json

CALLER: Final = "segserve.caller"
"""Namespace of the dynamic metadata that identifies the caller: `name`, `id`, `key` and `certificate`."""
MATCHED_TYPE: Final = "extensions.common.matching.v3.ExtensionWithMatcher"
TLS_SOCKET: Final = "envoy.transport_sockets.tls"
_AUTHORITIES: Final = "/etc/ssl/certs/ca-certificates.crt"
_EXTENSION_TYPE: Final = "config.core.v3.TypedExtensionConfig"


def extension(name: str, kind: str, **options: Any) -> Json:
    """Return an extension of Envoy: its name, and its options as a message of the type `kind`."""
    return {"name": name, "typed_config": {"@type": f"{TYPES}.{kind}", **options}}


def upstream_tls(host: str, ca_bundle: str | None = None) -> Json:
    """Return the transport socket of a cluster whose servers have to prove that they are `host`.

    `ca_bundle` has the authorities to trust, as PEM; by default they are the authorities of Envoy's image.
    """
    trusted = {"filename": _AUTHORITIES} if ca_bundle is None else {"inline_string": ca_bundle}
    is_address = re.fullmatch(r"[0-9.]+", host) or ":" in host
    names = [{"san_type": "IP_ADDRESS" if is_address else "DNS", "matcher": {"exact": host}}]
    validation = {"trusted_ca": trusted, "match_typed_subject_alt_names": names}
    return extension(
        TLS_SOCKET,
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        sni=host,
        common_tls_context={"validation_context": validation},
    )


def lua_filter(script: str, **constants: bool | int | str) -> Json:
    """Return the filter that runs a script of this folder, with these constants before it."""
    text = lua_script(script, **constants)
    kind = "extensions.filters.http.lua.v3.Lua"
    return extension("envoy.filters.http.lua", kind, default_source_code={"inline_string": text})


def lua_script(script: str, **constants: bool | int | str) -> str:
    """Return the text of a script of this folder, with these constants before it."""
    given = "".join(f"local {name} = {json.dumps(value)}\n" for name, value in constants.items())
    return given + files("segserve_operator.adapters.traffic").joinpath(script).read_text()


def watched_file(path: Path) -> Json:
    """Return a source of configuration: a file that Envoy reads again when it is replaced."""
    source = {"path": str(path), "watched_directory": {"path": str(path.parent)}}
    return {"resource_api_version": "V3", "path_config_source": source}


def watched_extension(name: str, kind: str, path: Path) -> Json:
    """Return an extension whose options, of the type `kind`, are in a watched file (ECDS)."""
    discovery = {"config_source": watched_file(path), "type_urls": [f"{TYPES}.{kind}"]}
    return {"name": name, "config_discovery": discovery}


def encode_extension(name: str, config: Json) -> tuple[str, bytes]:
    """Return (version, content) of the watched file of an extension."""
    return encode_resources([{"@type": f"{TYPES}.{_EXTENSION_TYPE}", "name": name, "typed_config": config}])


def encode_resources(resources: list[Json]) -> tuple[str, bytes]:
    """Return (version, content) of a watched file with these resources, in JSON; equal ones give equal content."""
    version = hashlib.sha256(json.dumps(resources, sort_keys=True).encode()).hexdigest()[:16]
    return version, json.dumps({"version_info": version, "resources": resources}, sort_keys=True).encode()


def body_buffer(most_bytes: int) -> Json:
    """Return the filter of HTTP that holds a request until it is whole; a larger one is refused (413)."""
    return extension(
        "envoy.filters.http.buffer", "extensions.filters.http.buffer.v3.Buffer", max_request_bytes=most_bytes
    )


def unless(predicate: Json, filter_: Json) -> Json:
    """Return an HTTP filter that is skipped if a predicate, such as the one of `header_matches`, is met."""
    skip = extension("skip", "extensions.filters.common.matcher.action.v3.SkipFilter")
    return extension(
        "envoy.filters.http.match_delegate",
        MATCHED_TYPE,
        extension_config=filter_,
        xds_matcher={"matcher_list": {"matchers": [{"predicate": predicate, "on_match": {"action": skip}}]}},
    )


def header_matches(name: str, match: Json) -> Json:
    """Return the predicate that a header of the request is there and matches."""
    value = extension(name, "type.matcher.v3.HttpRequestHeaderMatchInput", header_name=name)
    return {"single_predicate": {"input": value, "value_match": match}}


def listening_address(host: str, port: int) -> Json:
    """Return the address of a listener; `::` stands for all addresses, IPv4 included."""
    address = socket_address(host, port)
    if host == "::":
        address["socket_address"]["ipv4_compat"] = True  # Envoy requests only IPv6 from the kernel
    return address


def status_filter(code: int) -> Json:
    """Return the filter of local replies with an HTTP status."""
    value = {"default_value": code, "runtime_key": f"segserve.reply.{code}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def details_filter(condition: str) -> Json:
    """Return the filter of local replies whose code details meet a condition of CEL, such as `== 'late'`."""
    cel = extension(
        "envoy.access_loggers.extension_filters.cel",
        "extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        expression=f"response.code_details{condition}",
    )
    return {"extension_filter": cel}


def grpc_reply(
    filters: list[Json], text: str, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Json:
    """Return the mapper of local replies that all these filters match to a gRPC status, with a text as its message."""
    reply = {"filter": _all(filters), "body_format_override": {"text_format_source": {"inline_string": text}}}
    # Without a status Envoy derives it from HTTP's.
    added = {**(headers or {}), **({"grpc-status": str(status)} if status is not None else {})}
    return reply | _added(added)


def http_reply(filters: list[Json], error: str, headers: Mapping[str, str] | None = None) -> Json:
    """Return the mapper of local replies that all these filters match to a JSON object with an error."""
    reply = {"filter": _all(filters), "body_format_override": {"json_format": {"error": error}}}
    return reply | _added(headers or {})


def text_reply(filters: list[Json], content_type: str, headers: Mapping[str, str]) -> Json:
    """Return the mapper that gives local replies that all these filters match a type, and keeps their bodies."""
    body = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}, "content_type": content_type}
    return {"filter": _all(filters), "body_format_override": body} | _added(headers)


def _all(filters: list[Json]) -> Json:
    return {"and_filter": {"filters": filters}} if len(filters) > 1 else filters[0]


def header_filter(name: str, match: Json) -> Json:
    """Return the filter of local replies to requests with a header that matches."""
    return {"header_filter": {"header": {"name": name, "string_match": match}}}


def _added(headers: Mapping[str, str]) -> Json:
    values = [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]
    return {"headers_to_add": values} if values else {}
