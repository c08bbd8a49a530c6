"""One error for each way in which a request to a Kubernetes API server fails."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Self

from segserve_common.backoff import retry_after_s
from segserve_common.errors import ControlError


class ApiError(ControlError):
    """A request that failed; repeating it later is safe.

    `status` is the HTTP status (None if no answer came), `server_message` and `details` come from the server's Status
    object, `retry_after_s` is the time in seconds for which the server asked to wait.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | str | None = None,
        server_message: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after_s: float = 0.0,
        model: str | None = None,
    ) -> None:
        super().__init__(message, status=status, model=model)
        self.retry_after_s: float = retry_after_s
        self.server_message = server_message or message
        self.details = details or {}

    def about(self, subject: str) -> Self:
        """Return the same error with a message that names what the request was about."""
        message = f"{subject}: {self.server_message}"
        return type(self)(message, status=self.status, details=self.details, retry_after_s=self.retry_after_s)

    @property
    def causes(self) -> list[Mapping[str, Any]]:
        """The causes that the server names, each with `reason`, `message` and `field`."""
        return list(self.details.get("causes") or ())


class NotFoundError(ApiError):
    """There is no object of that kind and name (404), or no such namespace."""


class ConflictError(ApiError):
    """The object has changed, exists already, or has another owner of the field (409)."""


class GoneError(ApiError):
    """The resource version or the page that a watch or list continues from has expired (410)."""


class InvalidError(ApiError):
    """The server refuses the content (400, 422)."""


class ForbiddenError(ApiError):
    """The server refuses the caller (401, 403)."""


class ThrottledError(ApiError):
    """The server asks the caller to slow down (429)."""


class UnavailableError(ApiError):
    """The server failed (5xx), does not answer, or not in time."""


_BY_STATUS: Final[Mapping[int, type[ApiError]]] = {
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    408: UnavailableError,
    409: ConflictError,
    410: GoneError,
    429: ThrottledError,
}


def error_from_response(request: str, status: int, content: bytes, retry_after: str | None) -> ApiError:
    """Return the error that an answer stands for; `request` names the request in its message."""
    body = _status_object(content)
    server_message = str(body.get("message") or content.decode(errors="replace")[:200])
    details: Mapping[str, Any] = body.get("details") or {}
    error_type = _BY_STATUS.get(status, InvalidError if 400 <= status < 500 else UnavailableError)
    if status == 422 and any(cause.get("field") == "metadata.uid" for cause in details.get("causes") or ()):
        error_type = ConflictError  # another object has this name now
    return error_type(
        f"{request}: {status} {server_message}",
        status=status,
        server_message=server_message,
        details=details,
        retry_after_s=retry_after_s(retry_after) or 0.0,
    )


def _status_object(content: bytes) -> Mapping[str, Any]:
    try:
        body: Any = json.loads(content)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
