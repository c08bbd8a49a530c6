"""Lines of `LocalPlatform.logs` as objects of JSON: Triton's are read, objects stay, other text is a message."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from segserve_common.triton_log import TritonLogReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from segserve_platform.platforms.port import Json

_TEXT: Final = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d) (?P<clock>\d\d:\d\d:\d\d),(?P<ms>\d{3}) (?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) "
    r"(?:(?P<logger>segserve_\w+(?:\.\w+)*|__main__|kopf(?:\.\w+)*) )?(?P<message>.*)"
)
"""Lines of our own logs, in the time zone of this machine. Some programs name the logger."""


def log_records(lines: Iterable[str]) -> Iterator[Json]:
    """Yield an object for each line, with its `origin`; tables of Triton are one, once the next line has come."""
    readers: defaultdict[str, TritonLogReader] = defaultdict(TritonLogReader)
    for line in lines:
        origin, _, text = line.partition(" | ")
        written = _object(text)
        if written is not None:
            records = [written]
        elif origin.endswith("/triton"):
            records = readers[origin].read(text, datetime.now(UTC))
        else:
            records = [_of_text(text)]
        yield from ({"origin": origin} | record for record in records)
    for origin, reader in readers.items():
        yield from ({"origin": origin} | record for record in reader.flush())


def _object(text: str) -> Json | None:
    try:
        read = json.loads(text) if text.startswith("{") else None
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def _of_text(text: str) -> Json:
    found = _TEXT.fullmatch(text)
    if found is None:
        return {"message": text}
    try:
        written = datetime.fromisoformat(f"{found['day']} {found['clock']}.{found['ms']}")
        time = written.astimezone(UTC)
    except (ValueError, OverflowError):
        return {"message": text}
    logger = {} if found["logger"] is None else {"logger": found["logger"]}
    return {
        "time": time.isoformat(timespec="milliseconds"),
        "level": found["level"].lower(),
        **logger,
        "message": found["message"],
    }
