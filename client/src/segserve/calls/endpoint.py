"""The gateway's URL: the only module that reads `SEGSERVE_URL` and parses a URL."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

from segserve_common.errors import BadRequestError
from segserve_common.http.urls import PORTS, is_loopback

DEFAULT_URL: Final = "http://127.0.0.1:8080"
URL_VARIABLE: Final = "SEGSERVE_URL"
UrlSource: TypeAlias = Literal["given", "environment", "platform", "default"]
_OF_MODEL: Final = re.compile(r"/v[12](/models(/[^/]+)?)?/*$")
"""The end of a model's own URL, as `segserve get` prints it."""


@dataclass(frozen=True, slots=True)
class GatewayEndpoint:
    """The address of a gateway; `path` is the prefix before `/v2`, usually empty, and `source` what named the URL."""

    scheme: str
    host: str
    port: int
    path: str
    source: UrlSource = field(default="given", compare=False)

    @classmethod
    def parse(cls, url: str | None = None, running: Callable[[], str | None] = lambda: None) -> GatewayEndpoint:
        """Parse a URL such as `http://127.0.0.1:8080` or `gateway:80`; a model's URL is its gateway's.

        None means `SEGSERVE_URL`, else what `running` returns, the URL of this machine's platform, else the default.

        Raises `BadRequestError` for anything else.
        """
        if not isinstance(url, str | None):
            raise BadRequestError(f"a gateway's URL must be a text, got {type(url).__name__}")
        source: UrlSource = "given"
        text = url
        if not text:
            source, text = "environment", os.environ.get(URL_VARIABLE)
        if not text:
            source, text = "platform", running()
        if not text:
            source, text = "default", DEFAULT_URL
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            port = parts.port
            (parts.hostname or "").encode("idna")  # as a look-up does, whose error would have no type of ours
        except ValueError as error:
            raise BadRequestError(f"not a URL: {_shown(text)!r}: {_shown(str(error))}") from None
        if parts.scheme not in PORTS or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
            raise BadRequestError(f"a gateway's URL must be http(s)://host[:port][/prefix], got {_shown(text)!r}")
        return cls(
            parts.scheme,
            parts.hostname,
            port or PORTS[parts.scheme],
            _OF_MODEL.sub("", parts.path).rstrip("/"),
            source,
        )

    @property
    def authority(self) -> str:
        """`host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The full URL, without a trailing slash."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def is_loopback(self) -> bool:
        """Whether the gateway is on this machine, where no proxy is used."""
        return is_loopback(self.host)


def _shown(text: str) -> str:
    """Return the text without the part before an @, which may be a password."""
    return re.sub(r"[^/'\"]*@", "...@", text)
