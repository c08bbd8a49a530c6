"""The common base of both clients: gateway, credentials, policy and the platform; everything except sending."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

from segserve.calls.credentials import BearerToken, Credentials, Tls, check_readers, checked_headers, tls_or_default
from segserve.calls.endpoint import URL_VARIABLE, GatewayEndpoint
from segserve.calls.hooks import SILENT, Hooks, set_up_log
from segserve.calls.session import CallPolicy, Session
from segserve.calls.steps import DEFAULT_TIMEOUTS, Timeouts, TransportName
from segserve.calls.telemetry import telemetry_of
from segserve.errors import GatewayUnreachableError, ModelNotFoundError
from segserve.platform import Cluster, Local, running_platform
from segserve.transports.base import MAX_ANSWER_BYTES, Connection
from segserve_common.errors import SegserveError

if TYPE_CHECKING:
    from segserve_common.platform_record import PlatformRecord
    from segserve_platform.platforms.port import Platform

PlatformLike: TypeAlias = "Local | Cluster | Platform | None"
"""A platform or a reference to one; None means the one that the command line would use."""
NEEDED_BY_UP: Final = ("numba", "onnxruntime", "psutil")
"""Modules of the extra `local`, without which a platform does not start."""
OpenT = TypeVar("OpenT")


_OTHERS_WORDS: Final = frozenset({"predict", "infer", "detect", "inference", "run", "track", "classify", "generate"})


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

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Answer other libraries' words for `segment` with it."""
            ours = "; use segment(image, model=...)" if name in _OTHERS_WORDS else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{ours}", name=name, obj=self)

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


class LazyPlatform:
    """A platform that is opened by the first call, and reopened by the first one after `close`. Thread-safe."""

    def __init__(self, platform: PlatformLike = None) -> None:
        self.given = platform
        self._opened: Platform | None = None
        self._lock = threading.Lock()

    def platform(self) -> Platform:
        """Return the platform; raises `NoPlatformError` or `MissingExtraError` if it cannot be opened."""
        with self._lock:
            if self._opened is None:
                from segserve_platform.platforms.selection import open_platform

                given = self.given
                self._opened = open_platform(given) if given is None or isinstance(given, Local | Cluster) else given
            return self._opened

    def name_advice(self, model: str, port: int) -> str:
        """Return what to add to the error of a model that the gateway at this port of this machine does not serve.

        Only files are read; empty if they are not readable, or of a platform whose gateway has another port.
        """
        if not self.is_local:
            return ""
        with contextlib.suppress(SegserveError, OSError, ImportError):
            from segserve_platform.platforms.local import LocalPlatform
            from segserve_platform.platforms.waiting import name_advice

            platform = LocalPlatform(self.given if isinstance(self.given, Local) else None)
            version = platform.version()
            if version is not None and urlsplit(version.url).port == port:
                return name_advice(model, platform.models())
        return ""

    @property
    def is_local(self) -> bool:
        """Whether it is, or may be, the platform of this machine."""
        return self.given is None or isinstance(self.given, Local)

    def running(self) -> PlatformRecord | None:
        """Return the record of this machine's platform if that is the one and it runs; one file is read."""
        return running_platform(self.given) if self.given is None or isinstance(self.given, Local) else None

    def running_url(self) -> str | None:
        """Return the URL of the gateway of `running()`."""
        record = self.running()
        return None if record is None else record.url

    def unreachable_advice(self, endpoint: GatewayEndpoint) -> str:
        """Return why this URL was tried, at which nothing listens, and what helps; reads the platform's record."""
        of_environment = endpoint.source == "environment"
        if not endpoint.is_loopback or not self.is_local:
            return f"; {URL_VARIABLE} names it" if of_environment else ""
        up, port = self.running_url(), endpoint.port
        if up is not None and urlsplit(up).port == port:
            return "; the platform of this machine is up, but its gateway does not listen: `segserve logs` shows why"
        if up is not None:
            way = f"unset {URL_VARIABLE}" if of_environment else "leave out the URL"
            return f"; the platform of this machine is at {up}: {way} to use it"
        start = "`segserve up` starts it"
        if not all(map(find_spec, NEEDED_BY_UP)):
            start += " after pip install 'segserve[local]'"
        down = f"no platform is up on this machine: {start}"
        if endpoint.source != "default":
            return f"; {URL_VARIABLE} names it; {down}" if of_environment else f"; {down}"
        ways = f"(Client(url), {URL_VARIABLE}, `--url`)"
        return f"; it is the default, because {URL_VARIABLE} is not set and {down}, or name a gateway {ways}"

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
