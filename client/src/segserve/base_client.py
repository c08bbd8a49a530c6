"""The common base of both clients: gateway, credentials and policy; everything except sending."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Self, TypeVar

from segserve.calls.credentials import BearerToken, Credentials, Tls, check_readers, checked_headers, tls_or_default
from segserve.calls.endpoint import GatewayEndpoint
from segserve.calls.hooks import SILENT, Hooks, set_up_log
from segserve.calls.session import CallPolicy, Session
from segserve.calls.steps import DEFAULT_TIMEOUTS, Timeouts, TransportName
from segserve.calls.telemetry import telemetry_of
from segserve.errors import GatewayUnreachableError, ModelNotFoundError
from segserve.platform import LazyPlatform, PlatformLike
from segserve.transports.base import MAX_ANSWER_BYTES, Connection

OpenT = TypeVar("OpenT")


class BaseClient(Generic[OpenT]):
    """The common base of `Client` and `AsyncClient`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        transport: TransportName = "http",
        timeout_s: float | Timeouts = DEFAULT_TIMEOUTS,
        retries: int = 2,
        api_key: str | None = None,
        bearer_token: BearerToken | None = None,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        hooks: Hooks | None = None,
        telemetry: bool | None = None,
        http2: bool = False,
        gzip: bool = False,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        allow_plain_http_credentials: bool = False,
        platform: PlatformLike = None,
    ) -> None:
        set_up_log()
        self._lazy_platform = LazyPlatform(platform)
        endpoint = GatewayEndpoint.parse(url, self._lazy_platform.running_url)
        credentials = Credentials(api_key or os.environ.get("SEGSERVE_API_KEY") or None, bearer_token)
        timeouts = DEFAULT_TIMEOUTS.changed(timeout_s)
        policy = CallPolicy(timeouts, retries, checked_headers(headers or {}), hooks or SILENT)
        self._allow_plain_http = allow_plain_http_credentials
        self._transport_name, self._wants_telemetry = transport, telemetry
        running = self._lazy_platform.running() if endpoint.source == "platform" else None
        tls = tls_or_default(tls, endpoint, None if running is None else running.ca_file)
        self._connection = Connection(endpoint, credentials, tls, http2, gzip, max_answer_bytes)
        self._check_readers([*credentials.names, *policy.headers])
        self._transport = self._open(transport, self._connection)
        self._session = Session(policy, telemetry_of(telemetry, endpoint, transport))

    def with_options(
        self,
        *,
        timeout_s: float | Timeouts | None = None,
        retries: int | None = None,
        headers: Mapping[str, str] | None = None,
        hooks: Hooks | None = None,
    ) -> Self:
        """Return a client with other options that shares the connections and the cache of models.

        `headers` are added to the client's own. None leaves an option unchanged. Closing either client closes both.
        """
        old = self._session.policy
        added = checked_headers(headers or {})
        self._check_readers([*added])
        policy = replace(
            old,
            timeouts=old.timeouts.changed(timeout_s),
            retries=old.retries if retries is None else retries,
            headers={**old.headers, **added},
            hooks=old.hooks if hooks is None else hooks,
        )
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._session = self._session.with_policy(policy)
        return other

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of a client with the same settings, for any platform."""
        connection, policy = self._connection, self._session.policy
        return {
            "url": connection.endpoint.url,
            "transport": self._transport_name,
            "timeout_s": policy.timeouts,
            "retries": policy.retries,
            "api_key": connection.credentials.api_key,
            "bearer_token": connection.credentials.bearer_token,
            "tls": connection.tls,
            "headers": policy.headers,
            "hooks": None if policy.hooks is SILENT else policy.hooks,
            "telemetry": self._wants_telemetry,
            "http2": connection.http2,
            "gzip": connection.gzip,
            "max_answer_bytes": connection.max_answer_bytes,
            "allow_plain_http_credentials": self._allow_plain_http,
        }

    def _advise(self, error: ModelNotFoundError | GatewayUnreachableError) -> None:
        """Add to the error what helps, for a gateway on this machine by the files of its platform."""
        endpoint, advice = self._connection.endpoint, ""
        if isinstance(error, ModelNotFoundError):
            if not endpoint.is_loopback:
                return
            advice = self._lazy_platform.name_advice(error.model or "", endpoint.port)
            error.advised = bool(advice)
        elif type(error) is GatewayUnreachableError:
            advice = self._lazy_platform.unreachable_advice(endpoint)
        error.message += advice
        error.args = (error.message,)

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled client has the settings, credentials included, and opens connections of its own.
        return partial(type(self), **self._arguments(), platform=self._lazy_platform.given), ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.endpoint.url!r})"

    @staticmethod
    def _open(name: TransportName, connection: Connection) -> OpenT:
        raise NotImplementedError

    def _check_readers(self, names: list[str]) -> None:
        check_readers(self._connection.endpoint, names, allowed=self._allow_plain_http)
