"""Errors and states of a platform in words for people who see a page, neither Python nor a terminal of it."""

from __future__ import annotations

import re
import shlex
from typing import Any, Final

from segserve import errors
from segserve.platform import Cluster
from segserve_common.errors import SegserveError
from segserve_platform.platforms.errors import NoPlatformError, PlatformUnreachableError
from segserve_platform.platforms.local import LocalPlatform
from segserve_ui.backend import UiPlatform

GONE: Final = (NoPlatformError, PlatformUnreachableError)
"""The errors of a platform that is not there, which the page's banner shows."""
_CALL: Final = re.compile(r"client\.segment_tiled\(.*?\), (?=`segserve batch )")
_OF_PYTHON: Final = re.compile(r": (?:pass |segment its frames \(|its first bytes are b).*|\[Errno -?\d+\] ", re.DOTALL)
"""What Python's users can do with a file that is refused, its bytes as a literal, and the numbers of errors."""
_FORMATS: Final = "is not a JPEG, PNG, WebP or TIFF file", "is not of a known format"
_KEY_ADVICE: Final = "; the page uses SEGSERVE_API_KEY of the terminal that it was started in"


def page_text(error: Exception, place: UiPlatform) -> str:
    """Return the text of an error: what happened, and the command that helps."""
    if isinstance(error, errors.GatewayUnreachableError) and not isinstance(error, errors.TlsError):
        happened = "the gateway does not answer"
        if isinstance(error, errors.ConnectionLostError):
            happened = "the connection to the gateway broke before the answer was complete"
        return f"{happened}: `{_why_command(place)}` shows why"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = error.message if isinstance(error, SegserveError) else str(error)
    text = _OF_PYTHON.sub("", _CALL.sub("", text)).replace(*_FORMATS)
    return text + (_KEY_ADVICE if isinstance(error, errors.AuthenticationError) else "")


def gone(error: Exception | None, place: UiPlatform) -> dict[str, Any] | None:
    """Return the banner's `text` and `command` if the platform is gone; `error` is what reading its models raised."""
    if isinstance(place.platform, LocalPlatform):
        if place.platform.runs():
            return None
        text = "The platform is not running."
        if place.platform.is_unattended():
            text = "The platform's supervisor has ended: models may still answer, but nothing changes or recovers."
        return {"text": f"{text} Start it with:", "command": "segserve up"}
    if not isinstance(error, GONE):
        return None
    return {
        "text": f"The cluster does not respond. {page_text(error, place)}",
        "command": _kubectl(place, "cluster-info"),
    }


def _why_command(place: UiPlatform) -> str:
    if not isinstance(place.ref, Cluster):
        return "segserve logs"
    return _kubectl(place, "get pods -l app.kubernetes.io/managed-by=segserve")


def _kubectl(place: UiPlatform, words: str) -> str:
    options = []
    if isinstance(place.ref, Cluster):
        named = (("--context", place.ref.context), ("-n", place.ref.namespace))
        options = [word for option, value in named if value is not None for word in (option, shlex.quote(value))]
    return " ".join(["kubectl", *options, words])
