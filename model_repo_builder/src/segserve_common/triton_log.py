"""Triton's log, which is text, as objects of JSON with the fields of our own logs."""

from __future__ import annotations

import ast
import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

Json: TypeAlias = "dict[str, Any]"

_LEVELS: Final = {"V": "debug", "D": "debug", "I": "info", "W": "warning", "E": "error", "F": "critical"}
_HEADER: Final = re.compile(
    r"(?P<level>[IWEF])(?P<month>\d\d)(?P<day>\d\d) (?P<time>\d\d:\d\d:\d\d\.\d+) +\d+ "
    r"(?P<source>\S+:\d+)\] ?(?P<text>.*)"
)
_ONNX_RUNTIME: Final = re.compile(r"\[(?P<level>[VIWEF]):onnxruntime:")
_TABLE: Final = ("+", "|")
_MAX_TABLE_CHARS: Final = 64 * 1024
_QUOTED: Final = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_CONTEXT: Final = re.compile(
    rf"(?:step (?P<step>{_QUOTED}))?(?:, member (?P<member>{_QUOTED}))?(?:, )?(?:request (?P<request_id>{_QUOTED}))?: "
)
"""What steps put before an error; see `segserve_builder.backend.responses`."""
_REQUEST_ID: Final = re.compile(r"\[request id: (?P<request_id>.+?)\] ")
_STEP: Final = re.compile(r"segserve--[a-z0-9]+(?:-shared)?--[0-9a-f]{10}")
_MODEL: Final = re.compile(
    r"(?:(?:un)?loading: |(?:successfully |failed to )(?:un)?load(?:ed)? '|in ensemble '|unable to create stream for )"
    r"(?P<model>[a-z0-9][a-z0-9.-]*)"
)
_TRACEBACK: Final = "Traceback (most recent call last):"
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


class TritonLogReader:
    """Makes objects of the lines of one Triton, in order; tables stay together, up to 64 KiB."""

    def __init__(self, owner_of: Callable[[str], Mapping[str, str]] = lambda _: {}) -> None:
        """`owner_of` returns `model` and `revision` of a step, or a member, that only one model has, else nothing."""
        self._owner_of = owner_of
        self._table: Json | None = None

    def read(self, line: str, now: datetime) -> list[Json]:
        """Return the objects that are whole with this line. `now` gives the year; lines of libraries have no `time`."""
        header = _HEADER.fullmatch(line)
        if header is None and self._table is not None and line.startswith(_TABLE):
            self._table["message"] += line + "\n"
            return self.flush() if len(self._table["message"]) > _MAX_TABLE_CHARS else []
        whole = self.flush()
        if header is not None:
            fields = self._fields(header, now)
            if fields["message"]:
                whole.append(fields)
            else:
                self._table = fields
        elif line.strip():
            plain = _COLOUR.sub("", line)
            level = _ONNX_RUNTIME.search(plain)
            whole.append(
                {"level": "info" if level is None else _LEVELS[level["level"]], "logger": "triton", "message": plain}
            )
        return whole

    def flush(self) -> list[Json]:
        """Return the table that may not be whole yet."""
        table, self._table = self._table, None
        return [] if table is None else [table]

    def _fields(self, header: re.Match[str], now: datetime) -> Json:
        fields = {
            "time": _time(header, now),
            "level": _LEVELS[header["level"]],
            "logger": "triton",
            "source": header["source"],
        }
        message = _unquoted(header["text"])
        # Only what steps write of themselves is read up to the first colon: ids of requests are any text.
        context, end = _context(message)
        if context:
            message = message[end:]
            fields |= context
        else:
            found = _REQUEST_ID.match(message), _STEP.search(message), _MODEL.search(message)
            for name, match in zip(("request_id", "step", "model"), found, strict=True):
                if match is not None:
                    fields[name] = match[name] if name in match.re.groupindex else match[0]
        if fields.get("request_id") == "<id_unknown>":
            del fields["request_id"]
        if "step" in fields:
            fields.pop("model", None)  # Triton calls steps models
            if header["level"] in "WE":  # lines about loading are many, and come before the model that has the step
                fields |= self._owner_of(fields.get("member", fields["step"]))
        return fields | _parts(message)


def _context(message: str) -> tuple[dict[str, str], int]:
    """Return what a step says of itself before an error, and where that ends; nothing of other messages."""
    found = _CONTEXT.match(message)
    if found is None:
        return {}, 0
    try:
        quoted = {name: text for name, text in found.groupdict().items() if text is not None}
        return {name: ast.literal_eval(text) for name, text in quoted.items()}, found.end()
    except (SyntaxError, ValueError):  # not quoted by a step
        return {}, 0


def _time(header: re.Match[str], now: datetime) -> str:
    """Return the time of a line, which has no year: of the one before in the first days of a year."""
    text = f"{header['month']}-{header['day']}T{header['time'][:12]}+00:00"
    year = now.year - (int(header["month"]) > now.month)
    return f"{year}-{text}"


def _unquoted(text: str) -> str:
    """Return the text of a message, which newer releases quote as JSON does."""
    try:
        read = json.loads(text) if text.startswith('"') else text
    except ValueError:
        return text
    return read if isinstance(read, str) else text


def _parts(message: str) -> Json:
    """Return `message`, and `exception` if it is a traceback: the message is its last line then."""
    before, found, _ = message.partition(_TRACEBACK)
    if not found:
        return {"message": message}
    lines = message.rstrip().splitlines()
    return {"message": before + lines[-1], "exception": message[len(before) :].rstrip()}
