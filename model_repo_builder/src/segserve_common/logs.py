"""Logs of the programs that run in pods: text for people, or an object of JSON a line for a log store."""

from __future__ import annotations

import json
import logging
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias, cast, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

LogFormat: TypeAlias = Literal["text", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

FORMATS: Final[tuple[LogFormat, ...]] = get_args(LogFormat)
LEVELS: Final[tuple[LogLevel, ...]] = get_args(LogLevel)
FORMAT_VARIABLE: Final = "SEGSERVE_LOG_FORMAT"
LEVEL_VARIABLE: Final = "SEGSERVE_LOG_LEVEL"

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
_LIBRARIES: Final = ("aiohttp", "httpx", "kopf", "urllib3")
"""They log each request; our own lines report failures."""

_log = logging.getLogger(__name__)


class LogSettingsError(ValueError):
    """A format or a level that there is not; the message says what was seen and what is allowed."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How a program logs: the form of its lines, and the lowest level that is written."""

    format: LogFormat = "text"
    level: LogLevel = "info"

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read `SEGSERVE_LOG_FORMAT` and `SEGSERVE_LOG_LEVEL`; raises `LogSettingsError`."""
        return cls(
            cast("LogFormat", _one_of(environment, FORMAT_VARIABLE, FORMATS, cls().format)),
            cast("LogLevel", _one_of(environment, LEVEL_VARIABLE, LEVELS, cls().level)),
        )

    def variables(self) -> dict[str, str]:
        """Return the variables that `of` reads, without those that have their default."""
        given = {
            FORMAT_VARIABLE: (self.format, LogSettings().format),
            LEVEL_VARIABLE: (self.level, LogSettings().level),
        }
        return {name: value for name, (value, default) in given.items() if value != default}


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON: `time` (ISO 8601, UTC), `level`, `logger`, `message`, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return json.dumps(fields, ensure_ascii=False)


def start_logging(settings: LogSettings) -> None:
    """Write the process's log to stderr; as JSON, also warnings and uncaught exceptions."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    if settings.format == "json":
        logging.captureWarnings(capture=True)
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _log.critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_value is not None:
        _log_uncaught(told.exc_type, told.exc_value, told.exc_traceback)


def _one_of(environment: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    value = environment.get(name) or default
    if value not in allowed:
        raise LogSettingsError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    return value
