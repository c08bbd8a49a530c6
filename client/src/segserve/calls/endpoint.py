"""The gateway's URL: the only module that reads `SEGSERVE_URL` and parses a URL."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from segserve_common.errors import BadRequestError
from segserve_common.http.urls import is_loopback

DEFAULT_URL: Final = "http://127.0.0.1:8080"
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class GatewayEndpoint:
    """The address of a gateway; `path` is the prefix before `/v2`, usually empty."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str | None = None) -> GatewayEndpoint:
        """Parse a URL such as `http://127.0.0.1:8080` or `gateway:80`; None means `SEGSERVE_URL`, or else the default.

        Raises `BadRequestError` for anything else.
        """
        if not isinstance(url, str | None):
            raise BadRequestError(f"a gateway's URL must be a text, got {type(url).__name__}")
        text = url or os.environ.get("SEGSERVE_URL") or DEFAULT_URL
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            port = parts.port
            (parts.hostname or "").encode("idna")  # as a look-up does, whose error would have no type of ours
        except ValueError as error:
            raise BadRequestError(f"not a URL: {_shown(text)!r}: {_shown(str(error))}") from None
        if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
            raise BadRequestError(f"a gateway's URL must be http(s)://host[:port][/prefix], got {_shown(text)!r}")
        return cls(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], parts.path.rstrip("/"))

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
