"""Renders the filters that check callers' credentials, and the rules that say who may use a model.

Tokens are checked by Envoy's `jwt_authn`, API keys by its `basic_auth`, which has only their hashes, certificates by
its TLS; `rbac` decides. What comes from Secrets is in files that Envoy reads again when they are replaced (ECDS).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from segserve_common.files import write_private
from segserve_operator.adapters.traffic.envoy_clusters import TYPES, socket_address
from segserve_operator.adapters.traffic.envoy_extensions import (
    CALLER,
    MATCHED_TYPE,
    details_filter,
    encode_extension,
    extension,
    grpc_reply,
    header_filter,
    header_matches,
    http_reply,
    lua_filter,
    status_filter,
    unless,
    upstream_tls,
    watched_extension,
)
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.api.access import KEY_NAME, Auth, JwtIssuer, KeySet
from segserve_operator.api.pod_template import SecretKey
from segserve_operator.core.traffic import AccessRule, Callers

ACCESS_FILTER: Final = "segserve.access"
CREDENTIALS: Final = "credentials"
"""Key of a gateway's report for what is wrong with the Secrets of credentials."""
UNAUTHENTICATED: Final = "rbac_access_denied_matched_policy[unauthenticated]"
DENIED: Final = "rbac_access_denied_matched_policy[none]"
"""Details of the response to a caller that no rule of the model admits."""
_TOKENS: Final = "envoy.filters.http.jwt_authn"
_CLAIMS: Final = "claims"
_JWT: Final = "segserve.tokens"
_KEYS: Final = "segserve.keys"
_KEY_HEADER: Final = "x-segserve-key"
_KEY_LINE: Final = re.compile(rf"({KEY_NAME})(\+[A-Za-z0-9_.-]{{1,32}})?:\{{SHA\}}[A-Za-z0-9+/]{{27}}=")
_NOBODY: Final = "nobody:{SHA}" + "A" * 27 + "="
"""A line that no key fits, because it is the hash of nothing that is known; the filter needs one line at least."""
_JWKS_TIMEOUT_S: Final = 5
_JWKS_CACHE_S: Final = 300
_MOST_BYTES: Final = 2**20
"""A Secret cannot be larger."""
_UNAUTHENTICATED_STATUS: Final = 16


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Credentials that a gateway takes.

    A Secret is a folder of its name in one of the folders `secrets`, the first that has it; the files for Envoy are
    written into `folder`.
    """

    spec: Auth
    secrets: tuple[Path, ...]
    folder: Path

    @property
    def tokens(self) -> Path:
        """Configuration of the filter that checks tokens."""
        return self.folder / "tokens/tokens.json"

    @property
    def keys(self) -> Path:
        """Configuration of the filter that checks API keys."""
        return self.folder / "keys/keys.json"

    def secret(self, ref: SecretKey) -> bytes | None:
        """Return a value of a Secret, or None."""
        for folder in self.secrets:
            path = folder / ref.name / ref.key
            try:
                with path.open("rb") as file:
                    return file.read(_MOST_BYTES)
            except OSError:
                continue
        return None


@dataclass(slots=True)
class AuthFiles:
    """Writes the files of the filters whenever a Secret has changed."""

    settings: AuthSettings
    _written: dict[Path, bytes] = field(default_factory=dict)

    def refresh(self) -> list[str]:
        """Write what has changed, and return what is wrong with the Secrets: an unreadable Secret admits no caller."""
        problems: list[str] = []
        for path, name, config in self._rendered(problems):
            _, content = encode_extension(name, config)
            if self._written.get(path) != content or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_private(path, content)
                self._written[path] = content
        return problems

    def _rendered(self, problems: list[str]) -> Iterator[tuple[Path, str, Json]]:
        spec = self.settings.spec
        if spec.jwt:
            yield self.settings.tokens, _JWT, _tokens_config(self.settings, problems)
        if spec.api_keys:
            yield self.settings.keys, _KEYS, _keys_config(self._lines(problems))

    def _lines(self, problems: list[str]) -> list[str]:
        lines: dict[str, str] = {}
        for each in self.settings.spec.api_keys:
            ref, content = each.secret_ref, self.settings.secret(each.secret_ref)
            if content is None:
                problems.append(f"Secret {ref.name!r} has no {ref.key!r}: none of its API keys is taken")
                continue
            for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
                user = line.partition(":")[0]
                if not line.strip() or line.startswith("#"):
                    continue
                if not _KEY_LINE.fullmatch(line):
                    problems.append(f"line {number} of {ref.key!r} in Secret {ref.name!r} is not NAME:{{SHA}}HASH")
                elif user in lines:
                    problems.append(f"line {number} of {ref.key!r} in Secret {ref.name!r}: {user!r} has a key already")
                else:
                    lines[user] = line
        return list(lines.values())


def authentication_filters(settings: AuthSettings | None, *, open_paths: Iterable[str] = ()) -> list[Json]:
    """Return the filters that check credentials and name the caller, in their order; none if any caller is admitted.

    `open_paths` need no credentials; a wrong one is refused there as well.
    """
    if settings is None:
        return []
    spec, filters = settings.spec, list[Json]()
    if spec.api_keys:
        # basic_auth reads `Basic <base64 of NAME:SECRET>`, and a key is the latter part.
        append = {"header": {"key": _KEY_HEADER, "value": "Basic %REQ(x-api-key)%"}, "append_action": _OVERWRITE}
        filters.append(
            extension(
                "envoy.filters.http.header_mutation",
                "extensions.filters.http.header_mutation.v3.HeaderMutation",
                mutations={"request_mutations": [{"append": append}]},
            )
        )
    if spec.jwt:
        filters.append(watched_extension(_JWT, _JWT_TYPE, settings.tokens))
    if spec.api_keys:
        filters.append(watched_extension(_KEYS, MATCHED_TYPE, settings.keys))
    filters.append(lua_filter("caller.lua"))
    if not spec.anonymous:
        nobody = {"not_id": _metadata(CALLER, ["name"], {"present_match": True})}
        paths = [{"url_path": {"path": {"exact": path}}} for path in open_paths]
        closed = {"not_rule": {"or_rules": {"rules": paths}}} if paths else {"any": True}
        policy = {"permissions": [closed], "principals": [nobody]}
        rules = {"action": "DENY", "policies": {"unauthenticated": policy}}
        filters.append(extension("segserve.authenticated", _RBAC_TYPE, rules=rules))
    return filters


_OVERWRITE: Final = "OVERWRITE_IF_EXISTS_OR_ADD"
_JWT_TYPE: Final = "extensions.filters.http.jwt_authn.v3.JwtAuthentication"
_RBAC_TYPE: Final = "extensions.filters.http.rbac.v3.RBAC"


def access_filters() -> list[Json]:
    """Return the filters that hold a request to the rules of its route; without rules they let all pass."""
    return [lua_filter("access.lua"), extension(ACCESS_FILTER, _RBAC_TYPE)]


def access_of_route(rules: tuple[AccessRule, ...]) -> Json:
    """Return the setting of a route that admits callers by these rules; without rules, no caller."""
    principals = [principal for rule in rules for principal in _principals(rule)]
    policies = {"callers": {"permissions": [{"any": True}], "principals": principals}} if principals else {}
    rbac = {"@type": f"{TYPES}.extensions.filters.http.rbac.v3.RBACPerRoute"}
    return {ACCESS_FILTER: {**rbac, "rbac": {"rules": {"action": "ALLOW", "policies": policies}}}}


def _principals(rule: AccessRule) -> Iterator[Json]:
    if rule.callers is Callers.ANONYMOUS:
        yield {"any": True}
    elif rule.callers is Callers.AUTHENTICATED:
        yield _metadata(CALLER, ["name"], {"present_match": True})
    for key in rule.keys:
        yield _metadata(CALLER, ["key"], _exact(key))
    for name in rule.certificates:
        yield _metadata(CALLER, ["certificate"], _exact(name))
    for value in rule.values:
        path = [_CLAIMS, *([rule.claim] if "://" in rule.claim else rule.claim.split("."))]
        issuer = [_metadata(_TOKENS, [_CLAIMS, "iss"], _exact(rule.issuer))] if rule.issuer else []
        for match in (_exact(value), {"list_match": {"one_of": _exact(value)}}):
            claim = _metadata(_TOKENS, path, match)
            yield {"and_ids": {"ids": [claim, *issuer]}} if issuer else claim


def _exact(text: str) -> Json:
    return {"string_match": {"exact": text}}


def _metadata(namespace: str, path: Iterable[str], value: Json) -> Json:
    matcher = {"filter": namespace, "path": [{"key": key} for key in path], "value": value}
    return {"sourced_metadata": {"metadata_matcher": matcher}}


def refusals(settings: AuthSettings | None) -> list[Json]:
    """Return the mappers of the responses to callers whose credentials are missing or wrong: 401, UNAUTHENTICATED."""
    if settings is None:
        return []
    spec = settings.spec
    takes = [
        *(["a token as `Authorization: Bearer`"] if spec.jwt else []),
        *(["an API key as `x-api-key`"] if spec.api_keys else []),
        *(["a client certificate"] if spec.mtls else []),
    ]
    missing = f"credentials are missing: this gateway takes {' or '.join(takes)}"
    wrong = "credentials are wrong: %LOCAL_REPLY_BODY%"
    schemes = [*(["Bearer"] if spec.jwt else []), *(["ApiKey"] if spec.api_keys else [])]
    challenge = {"www-authenticate": ", ".join(f'{scheme} realm="segserve"' for scheme in schemes or ["Mutual"])}
    grpc = header_filter("content-type", {"prefix": "application/grpc"})
    denied_token = details_filter(f".startsWith('{_TOKENS_DENIED}')")
    nobody = details_filter(f" == '{UNAUTHENTICATED}'")
    mappers = []
    for reason, text in ((nobody, missing), ({"or_filter": {"filters": [status_filter(401), denied_token]}}, wrong)):
        of_grpc = grpc_reply([reason, grpc], text, _UNAUTHENTICATED_STATUS, challenge)
        mappers += [of_grpc | {"status_code": 401}, http_reply([reason], text, challenge) | {"status_code": 401}]
    return mappers


_TOKENS_DENIED: Final = "jwt_authn_access_denied"


def jwks_clusters(settings: AuthSettings | None) -> list[Json]:
    """Return the clusters from which key sets are fetched."""
    issuers = settings.spec.jwt if settings is not None else ()
    return [
        _jwks_cluster(settings, number, issuer.jwks)
        for number, issuer in enumerate(issuers)
        if settings is not None and issuer.jwks.url is not None
    ]


def _jwks_cluster(settings: AuthSettings, number: int, jwks: KeySet) -> Json:
    url = urlsplit(jwks.url or "")
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    endpoint = {"endpoint": {"address": socket_address(host, port)}}
    cluster: Json = {
        "name": _jwks_cluster_name(number),
        "type": "STRICT_DNS",
        "connect_timeout": f"{_JWKS_TIMEOUT_S}s",
        "load_assignment": {"cluster_name": _jwks_cluster_name(number), "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if url.scheme == "http":
        return cluster
    own = settings.secret(jwks.ca_secret_ref) if jwks.ca_secret_ref is not None else None
    # Without the authorities that it names nothing is trusted.
    trusted = None if jwks.ca_secret_ref is None else (own or b"none").decode()
    return {**cluster, "transport_socket": upstream_tls(host, trusted)}


def _jwks_cluster_name(number: int) -> str:
    return f"/{number}/jwks/http"  # as all names of clusters are: of no model


def _tokens_config(settings: AuthSettings, problems: list[str]) -> Json:
    providers = {}
    for number, issuer in enumerate(settings.spec.jwt):
        keys = _key_set(settings, issuer, number, problems)
        if keys is not None:
            providers[f"issuer-{number}"] = {
                "issuer": issuer.issuer,
                "audiences": list(issuer.audiences),
                **keys,
                "from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}],  # not from the query
                "forward": False,
                "require_expiration": True,
                "payload_in_metadata": _CLAIMS,
                "normalize_payload_in_metadata": {"space_delimited_claims": ["scope"]},
                "claim_to_headers": [{"header_name": "x-segserve-token-name", "claim_name": issuer.name_claim}],
            }
    # A caller may have another kind of credentials instead; a wrong token is refused all the same.
    either = [*({"provider_name": name} for name in providers), {"allow_missing": {}}]
    requires = {"requires_any": {"requirements": either}} if len(either) > 1 else either[0]
    rules = [{"match": {"prefix": "/"}, "requires": requires}]
    return {"@type": f"{TYPES}.{_JWT_TYPE}", "providers": providers, "rules": rules}


def _key_set(settings: AuthSettings, issuer: JwtIssuer, number: int, problems: list[str]) -> Json | None:
    jwks = issuer.jwks
    if jwks.url is not None:
        uri = {"uri": jwks.url, "cluster": _jwks_cluster_name(number), "timeout": f"{_JWKS_TIMEOUT_S}s"}
        # Fetched before the first request, and without one; the listener does not wait for it.
        fetch = {"fast_listener": True, "failed_refetch_duration": "1s"}
        return {"remote_jwks": {"http_uri": uri, "cache_duration": f"{_JWKS_CACHE_S}s", "async_fetch": fetch}}
    where = "jwks.inline"
    text = jwks.inline
    if jwks.secret_ref is not None:
        where = f"{jwks.secret_ref.key!r} in Secret {jwks.secret_ref.name!r}"
        content = settings.secret(jwks.secret_ref)
        text = content.decode(errors="replace") if content is not None else None
    if text is None or not _is_key_set(text):
        problems.append(f"{where} is not a JSON Web Key Set with a key: tokens of {issuer.issuer!r} are refused")
        return None
    return {"local_jwks": {"inline_string": text}}


def _is_key_set(text: str) -> bool:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return False
    keys = read.get("keys") if isinstance(read, dict) else None
    return isinstance(keys, list) and bool(keys) and all(isinstance(key, dict) and "kty" in key for key in keys)


def _keys_config(lines: list[str]) -> Json:
    present = header_matches("x-api-key", {"safe_regex": {"google_re2": {}, "regex": ".*"}})
    users = {"inline_string": "\n".join([*lines, _NOBODY])}
    basic = extension(
        "envoy.filters.http.basic_auth",
        "extensions.filters.http.basic_auth.v3.BasicAuth",
        users=users,
        authentication_header=_KEY_HEADER,
        forward_username_header="x-segserve-key-user",
    )
    config: Json = unless({"not_matcher": present}, basic)["typed_config"]
    return config
