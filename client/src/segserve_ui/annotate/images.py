"""Images under annotation, which are fetched from allowed origins alone."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

import httpx

from segserve.errors import AuthenticationError, RequestTooLargeError
from segserve_common.errors import BadRequestError, SegserveError
from segserve_common.http.guard import GuardedRequest, get
from segserve_common.http.urls import RefusedError, RequestError, Url, UrlError, own_service

MAX_BYTES: Final = 64 * 2**20
TIMEOUT_S: Final = 30.0
_SENT_ENCODED: Final = re.compile(r"[ \u0080-\U0010ffff]+")
ACCESS_S: Final = 240.0
"""Label Studio's access tokens are valid for 300 s."""


class ImageRefusedError(BadRequestError):
    """The URL of an image that must not be fetched; nothing was sent to its host."""


class ImageUnavailableError(SegserveError):
    """An image that its host did not send."""


class TaskImages:
    """Fetches images of the origins of `home`, which is Label Studio's URL, and of `allowed`. Thread-safe.

    `home` alone gets the `token`, a personal access token or a legacy one. Raises `BadRequestError` for other URLs than
    http(s).
    """

    def __init__(self, home: str, token: str | None = None, allowed: Iterable[str] = ()) -> None:
        try:
            self._home, *others = map(Url.parse, (home, *allowed))
        except (RefusedError, UrlError) as error:
            raise BadRequestError(str(error)) from error
        self._allowed = {url.origin: f"{url.scheme}://{url.netloc}" for url in (self._home, *others)}
        self._token, self._access, self._renew_at_s, self._lock = token, "", 0.0, threading.Lock()

    def fetch(self, text: str) -> bytes:
        """Return the file of at most `MAX_BYTES` at a URL, which may be relative; each wait takes at most `TIMEOUT_S`.

        Raises `ImageRefusedError` before anything is sent to another origin, also by a redirect, and
        `RequestTooLargeError`, `ImageUnavailableError`, or `AuthenticationError` for the token.
        """
        try:
            parts = urlsplit(urljoin(str(self._home), text))
            path, query = (_SENT_ENCODED.sub(lambda found: quote(found[0]), each) for each in (parts.path, parts.query))
            url = Url.parse(parts._replace(path=path, query=query).geturl())
            self._check(url)
            own = self._authorization() if self._token and url.origin == self._home.origin else None
            request = GuardedRequest(
                url=url, check_address=own_service, check_redirect=self._check, authorization=own, timeout_s=TIMEOUT_S
            )
            with get(request) as response:
                if response.status != httpx.codes.OK:
                    raise ImageUnavailableError(f"'{response.url}' answers {response.status}; expected 200")
                try:
                    return response.content(MAX_BYTES)
                except RequestError as error:
                    raise (ImageUnavailableError if error.is_transient else RequestTooLargeError)(str(error)) from error
        except (RefusedError, UrlError) as error:
            raise ImageRefusedError(str(error)) from error
        except RequestError as error:
            raise ImageUnavailableError(str(error)) from error

    def _check(self, url: Url) -> None:
        if url.origin not in self._allowed:
            allowed = ", ".join(self._allowed.values())
            raise RefusedError(f"images of {url.scheme}://{url.netloc} are not allowed; allowed (--allow): {allowed}")

    def _authorization(self) -> str:
        if str(self._token).count(".") != 2:
            return f"Token {self._token}"
        with self._lock:  # a personal access token is a JWT, and is exchanged for one that is valid for minutes
            if time.monotonic() >= self._renew_at_s:
                url = f"{str(self._home).rstrip('/')}/api/token/refresh/"
                try:
                    answer = httpx.post(url, json={"refresh": self._token}, timeout=TIMEOUT_S, trust_env=False)
                    self._access = answer.raise_for_status().json()["access"]
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    raise AuthenticationError(f"Label Studio does not accept LABEL_STUDIO_API_KEY: {error}") from error
                self._renew_at_s = time.monotonic() + ACCESS_S
            return f"Bearer {self._access}"
