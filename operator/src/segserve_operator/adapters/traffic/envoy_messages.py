"""Envoy's messages in the protobuf wire format, which it reads several times faster than JSON.

The table has the numbers of the fields that segserve writes, as Envoy's API defines them; JSON with any other field is
refused. Nested messages go by their plain names, since only those inside an `Any` are known by name to Envoy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, TypeAlias

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    json_format,
    message_factory,
    struct_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

Json: TypeAlias = dict[str, Any]

TYPE_PREFIX: Final = "type.googleapis.com/"
CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
LOCALITY: Final = "envoy.config.endpoint.v3.LocalityLbEndpoints"
ROUTE_CONFIGURATION: Final = "envoy.config.route.v3.RouteConfiguration"
ROUTE_MAP: Final = "xds.type.matcher.v3.MatchMap"
RUNTIME: Final = "envoy.service.runtime.v3.Runtime"
DISCOVERY_RESPONSE: Final = "envoy.service.discovery.v3.DiscoveryResponse"
_LENGTH_DELIMITED: Final = 2
"""The wire type of messages and strings."""

_WELL_KNOWN: Final = {
    "any": "google.protobuf.Any",
    "bool?": "google.protobuf.BoolValue",
    "duration": "google.protobuf.Duration",
    "struct": "google.protobuf.Struct",
    "uint32?": "google.protobuf.UInt32Value",
    "uint64?": "google.protobuf.UInt64Value",
}
_ENUMS: Final = {
    "DiscoveryType": {"STATIC": 0},
    "LbPolicy": {"ROUND_ROBIN": 0, "LEAST_REQUEST": 1, "MAGLEV": 5},
    "RbacAction": {"ALLOW": 0, "DENY": 1},
    "AppendAction": {"APPEND_IF_EXISTS_OR_ADD": 0, "ADD_IF_ABSENT": 1, "OVERWRITE_IF_EXISTS_OR_ADD": 2},
}
# By message: the fields' numbers and types. "[]" is a repeated field, "{}" a map with such values by string.
_MESSAGES: Final[dict[str, dict[str, tuple[int, str]]]] = {
    "envoy.config.core.v3.SocketAddress": {"address": (2, "string"), "port_value": (3, "uint32")},
    "envoy.config.core.v3.Address": {"socket_address": (1, "envoy.config.core.v3.SocketAddress")},
    "envoy.config.core.v3.TcpKeepalive": {
        "keepalive_probes": (1, "uint32?"),
        "keepalive_time": (2, "uint32?"),
        "keepalive_interval": (3, "uint32?"),
    },
    "envoy.config.core.v3.SocketOption": {"level": (2, "int64"), "name": (3, "int64"), "int_value": (4, "int64")},
    "envoy.config.core.v3.BindConfig": {"socket_options": (3, "[]envoy.config.core.v3.SocketOption")},
    "envoy.config.core.v3.HeaderValue": {"key": (1, "string"), "value": (2, "string")},
    "envoy.config.core.v3.HeaderValueOption": {
        "header": (1, "envoy.config.core.v3.HeaderValue"),
        "append_action": (3, "AppendAction"),
        "keep_empty_value": (4, "bool"),
    },
    "envoy.config.core.v3.Http1ProtocolOptions": {},
    "envoy.config.core.v3.KeepaliveSettings": {"timeout": (2, "duration"), "connection_idle_interval": (4, "duration")},
    "envoy.config.core.v3.Http2ProtocolOptions": {
        "connection_keepalive": (15, "envoy.config.core.v3.KeepaliveSettings")
    },
    "envoy.config.core.v3.DataSource": {"inline_string": (3, "string")},
    "envoy.config.endpoint.v3.Endpoint": {"address": (1, "envoy.config.core.v3.Address")},
    "envoy.config.core.v3.Metadata": {"filter_metadata": (1, "{}struct")},
    "envoy.config.endpoint.v3.LbEndpoint": {
        "endpoint": (1, "envoy.config.endpoint.v3.Endpoint"),
        "metadata": (3, "envoy.config.core.v3.Metadata"),
    },
    LOCALITY: {"lb_endpoints": (2, "[]envoy.config.endpoint.v3.LbEndpoint")},
    "envoy.config.endpoint.v3.ClusterLoadAssignment": {
        "cluster_name": (1, "string"),
        "endpoints": (2, f"[]{LOCALITY}"),
    },
    "envoy.type.matcher.v3.StringMatcher": {"exact": (1, "string")},
    "envoy.type.v3.Percent": {"value": (1, "double")},
    "envoy.config.cluster.v3.RetryBudget": {
        "budget_percent": (1, "envoy.type.v3.Percent"),
        "min_retry_concurrency": (2, "uint32?"),
    },
    "envoy.config.cluster.v3.Thresholds": {
        "max_connections": (2, "uint32?"),
        "max_pending_requests": (3, "uint32?"),
        "max_requests": (4, "uint32?"),
        "retry_budget": (8, "envoy.config.cluster.v3.RetryBudget"),
    },
    "envoy.config.cluster.v3.CircuitBreakers": {"thresholds": (1, "[]envoy.config.cluster.v3.Thresholds")},
    "envoy.config.cluster.v3.OutlierDetection": {
        "base_ejection_time": (3, "duration"),
        "max_ejection_percent": (4, "uint32?"),
        "enforcing_consecutive_5xx": (5, "uint32?"),
        "enforcing_success_rate": (6, "uint32?"),
        "enforcing_consecutive_gateway_failure": (11, "uint32?"),
        "split_external_local_origin_errors": (12, "bool"),
        "consecutive_local_origin_failure": (13, "uint32?"),
        "enforcing_local_origin_success_rate": (15, "uint32?"),
        "max_ejection_time": (21, "duration"),
    },
    "envoy.config.cluster.v3.UpstreamConnectionOptions": {"tcp_keepalive": (1, "envoy.config.core.v3.TcpKeepalive")},
    CLUSTER: {
        "name": (1, "string"),
        "type": (2, "DiscoveryType"),
        "connect_timeout": (4, "duration"),
        "lb_policy": (6, "LbPolicy"),
        "circuit_breakers": (10, "envoy.config.cluster.v3.CircuitBreakers"),
        "outlier_detection": (19, "envoy.config.cluster.v3.OutlierDetection"),
        "upstream_bind_config": (21, "envoy.config.core.v3.BindConfig"),
        "upstream_connection_options": (30, "envoy.config.cluster.v3.UpstreamConnectionOptions"),
        "load_assignment": (33, "envoy.config.endpoint.v3.ClusterLoadAssignment"),
        "typed_extension_protocol_options": (36, "{}any"),
    },
    "envoy.extensions.upstreams.http.v3.ExplicitHttpConfig": {
        "http_protocol_options": (1, "envoy.config.core.v3.Http1ProtocolOptions"),
        "http2_protocol_options": (2, "envoy.config.core.v3.Http2ProtocolOptions"),
    },
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "explicit_http_config": (3, "envoy.extensions.upstreams.http.v3.ExplicitHttpConfig")
    },
    "envoy.type.matcher.v3.HttpRequestHeaderMatchInput": {"header_name": (1, "string")},
    "xds.core.v3.TypedExtensionConfig": {"name": (1, "string"), "typed_config": (2, "any")},
    "xds.type.matcher.v3.OnMatch": {"action": (2, "xds.core.v3.TypedExtensionConfig")},
    ROUTE_MAP: {"map": (1, "{}xds.type.matcher.v3.OnMatch")},
    "xds.type.matcher.v3.MatcherTree": {
        "input": (1, "xds.core.v3.TypedExtensionConfig"),
        "exact_match_map": (2, ROUTE_MAP),
    },
    "xds.type.matcher.v3.Matcher": {
        "matcher_tree": (2, "xds.type.matcher.v3.MatcherTree"),
        "on_no_match": (3, "xds.type.matcher.v3.OnMatch"),
    },
    "envoy.config.route.v3.RouteMatch": {"prefix": (1, "string")},
    "envoy.config.route.v3.ClusterWeight": {
        "name": (1, "string"),
        "weight": (2, "uint32?"),
        "response_headers_to_add": (5, "[]envoy.config.core.v3.HeaderValueOption"),
    },
    "envoy.config.route.v3.WeightedCluster": {
        "clusters": (1, "[]envoy.config.route.v3.ClusterWeight"),
        "runtime_key_prefix": (2, "string"),
        "header_name": (4, "string"),
    },
    "envoy.config.route.v3.HashedHeader": {"header_name": (1, "string")},
    "envoy.config.route.v3.HashPolicy": {"header": (1, "envoy.config.route.v3.HashedHeader")},
    "envoy.config.route.v3.RequestMirrorPolicy": {
        "trace_sampled": (4, "bool?"),
        "cluster_header": (5, "string"),
        "disable_shadow_host_suffix_append": (6, "bool"),
    },
    "envoy.config.route.v3.RouteAction": {
        "cluster": (1, "string"),
        "weighted_clusters": (3, "envoy.config.route.v3.WeightedCluster"),
        "timeout": (8, "duration"),
        "hash_policy": (15, "[]envoy.config.route.v3.HashPolicy"),
        "request_mirror_policies": (30, "[]envoy.config.route.v3.RequestMirrorPolicy"),
    },
    "envoy.config.route.v3.DirectResponseAction": {
        "status": (1, "uint32"),
        "body": (2, "envoy.config.core.v3.DataSource"),
    },
    "envoy.config.route.v3.Route": {
        "match": (1, "envoy.config.route.v3.RouteMatch"),
        "route": (2, "envoy.config.route.v3.RouteAction"),
        "metadata": (4, "envoy.config.core.v3.Metadata"),
        "direct_response": (7, "envoy.config.route.v3.DirectResponseAction"),
        "response_headers_to_add": (10, "[]envoy.config.core.v3.HeaderValueOption"),
        "typed_per_filter_config": (13, "{}any"),
    },
    # A value in a list is a text, and an identity in a set is metadata: messages do not contain themselves here.
    "envoy.type.matcher.v3.TextMatcher": {"string_match": (3, "envoy.type.matcher.v3.StringMatcher")},
    "envoy.type.matcher.v3.ListMatcher": {"one_of": (1, "envoy.type.matcher.v3.TextMatcher")},
    "envoy.type.matcher.v3.ValueMatcher": {
        "string_match": (3, "envoy.type.matcher.v3.StringMatcher"),
        "present_match": (5, "bool"),
        "list_match": (6, "envoy.type.matcher.v3.ListMatcher"),
    },
    "envoy.type.matcher.v3.PathSegment": {"key": (1, "string")},
    "envoy.type.matcher.v3.MetadataMatcher": {
        "filter": (1, "string"),
        "path": (2, "[]envoy.type.matcher.v3.PathSegment"),
        "value": (3, "envoy.type.matcher.v3.ValueMatcher"),
    },
    "envoy.config.rbac.v3.SourcedMetadata": {"metadata_matcher": (1, "envoy.type.matcher.v3.MetadataMatcher")},
    "envoy.config.rbac.v3.MetadataPrincipal": {"sourced_metadata": (13, "envoy.config.rbac.v3.SourcedMetadata")},
    "envoy.config.rbac.v3.PrincipalSet": {"ids": (1, "[]envoy.config.rbac.v3.MetadataPrincipal")},
    "envoy.config.rbac.v3.Principal": {
        "and_ids": (1, "envoy.config.rbac.v3.PrincipalSet"),
        "any": (3, "bool"),
        "sourced_metadata": (13, "envoy.config.rbac.v3.SourcedMetadata"),
    },
    "envoy.config.rbac.v3.Permission": {"any": (3, "bool")},
    "envoy.config.rbac.v3.Policy": {
        "permissions": (1, "[]envoy.config.rbac.v3.Permission"),
        "principals": (2, "[]envoy.config.rbac.v3.Principal"),
    },
    "envoy.config.rbac.v3.RBAC": {"action": (1, "RbacAction"), "policies": (2, "{}envoy.config.rbac.v3.Policy")},
    "envoy.extensions.filters.http.rbac.v3.RBAC": {"rules": (1, "envoy.config.rbac.v3.RBAC")},
    "envoy.extensions.filters.http.rbac.v3.RBACPerRoute": {"rbac": (2, "envoy.extensions.filters.http.rbac.v3.RBAC")},
    "envoy.extensions.filters.http.lua.v3.LuaPerRoute": {"name": (2, "string")},
    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate": {},
    "envoy.config.route.v3.RetryHostPredicate": {"name": (1, "string"), "typed_config": (3, "any")},
    "envoy.config.route.v3.HeaderMatcher": {"name": (1, "string"), "present_match": (7, "bool")},
    "envoy.config.route.v3.RetryPolicy": {
        "retry_on": (1, "string"),
        "num_retries": (2, "uint32?"),
        "retry_host_predicate": (5, "[]envoy.config.route.v3.RetryHostPredicate"),
        "host_selection_retry_max_attempts": (6, "int64"),
        "retriable_status_codes": (7, "[]uint32"),
        "retriable_headers": (9, "[]envoy.config.route.v3.HeaderMatcher"),
    },
    "envoy.config.route.v3.VirtualHost": {
        "name": (1, "string"),
        "domains": (2, "[]string"),
        "typed_per_filter_config": (15, "{}any"),
        "retry_policy": (16, "envoy.config.route.v3.RetryPolicy"),
        "matcher": (21, "xds.type.matcher.v3.Matcher"),
        "request_body_buffer_limit": (25, "uint64?"),
    },
    ROUTE_CONFIGURATION: {
        "name": (1, "string"),
        "virtual_hosts": (2, "[]envoy.config.route.v3.VirtualHost"),
        "request_headers_to_add": (6, "[]envoy.config.core.v3.HeaderValueOption"),
        "request_headers_to_remove": (8, "[]string"),
        "max_direct_response_body_size_bytes": (11, "uint32?"),
    },
    RUNTIME: {"name": (1, "string"), "layer": (2, "struct")},
    DISCOVERY_RESPONSE: {"version_info": (1, "string"), "resources": (2, "[]any")},
}
_Field: TypeAlias = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
    "int64": _Field.TYPE_INT64,
    "bool": _Field.TYPE_BOOL,
    "double": _Field.TYPE_DOUBLE,
}


def new_message(name: str) -> Any:
    """Return an empty message of the full name `name`."""
    return _message_class(name)()


def parse(name: str, encoded: bytes) -> Any:
    """Return the message of the full name `name` in the wire format.

    Raises `google.protobuf.message.DecodeError` if it is not one.
    """
    message = new_message(name)
    message.ParseFromString(encoded)
    return message


def parse_json(name: str, value: Json) -> Any:
    """Return the message of the full name `name` for its JSON form.

    Raises `google.protobuf.json_format.ParseError` if `value` has a field that the table does not have.
    """
    resource = {key: part for key, part in value.items() if key != "@type"}
    return json_format.ParseDict(resource, new_message(name), descriptor_pool=_pool())


def to_json(message: Message) -> Json:
    """Return the JSON form of a message, with the names of its fields as they are in the table."""
    document: Json = json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=_pool())
    return document


def encode(message: Message) -> bytes:
    """Return the wire format; equal messages give equal bytes."""
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


def encode_with(message: Message, path: Sequence[str], more: bytes) -> bytes:
    """Encode a message with an encoded message `more` joined to its part at `path`, in which lists have one element.

    Much faster than to parse it, join the two, and encode the whole.
    """
    if not path:
        return encode(message) + more
    name, *inner = path
    value = getattr(message, name)
    field = message.DESCRIPTOR.fields_by_name[name]
    part = encode_with(value[0] if field.is_repeated else value, inner, more)
    rest = type(message)()
    rest.CopyFrom(message)
    rest.ClearField(name)
    return encode(rest) + _varint(field.number << 3 | _LENGTH_DELIMITED) + _varint(len(part)) + part


def _varint(number: int) -> bytes:
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


@cache
def _message_class(name: str) -> type[Message]:
    found: type[Message] = message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))
    return found


@cache
def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for module in (any_pb2, duration_pb2, struct_pb2, wrappers_pb2)
    ]
    enums = descriptor_pb2.FileDescriptorProto(name="enums", package="segserve", syntax="proto3")
    for enum, numbers in _ENUMS.items():
        values = [descriptor_pb2.EnumValueDescriptorProto(name=key, number=at) for key, at in numbers.items()]
        enums.enum_type.add(name=enum, value=values)
    files.append(enums)
    for name, fields in _MESSAGES.items():
        package, _, plain = name.rpartition(".")
        # A file each, in the order of the table, in which a message comes after those that it contains.
        file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
        file.dependency.extend(earlier.name for earlier in files)
        message = file.message_type.add(name=plain)
        for field, (number, kind) in fields.items():
            _add_field(message, f".{name}", field, number, kind)
        files.append(file)
    for file in files:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, field: str, number: int, kind: str) -> None:
    added = message.field.add(name=field, number=number, label=_Field.LABEL_OPTIONAL)
    if kind.startswith("{}"):
        entry = "".join(map(str.capitalize, field.split("_"))) + "Entry"  # the name that protobuf requires
        nested = message.nested_type.add(name=entry)
        nested.options.map_entry = True
        _add_field(nested, f"{name}.{entry}", "key", 1, "string")
        _add_field(nested, f"{name}.{entry}", "value", 2, kind.removeprefix("{}"))
        added.label, added.type, added.type_name = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE, f"{name}.{entry}"
        return
    if kind.startswith("[]"):
        added.label, kind = _Field.LABEL_REPEATED, kind.removeprefix("[]")
    if kind in _SCALARS:
        added.type = _SCALARS[kind]
    elif kind in _ENUMS:
        added.type, added.type_name = _Field.TYPE_ENUM, f".segserve.{kind}"
    else:
        added.type, added.type_name = _Field.TYPE_MESSAGE, f".{_WELL_KNOWN.get(kind, kind)}"
