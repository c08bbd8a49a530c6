"""The files of one Triton: its model repository and its log."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from segserve_builder.agent.server import ensemble_of
from segserve_builder.agent.state import Ensemble
from segserve_builder.render.publish import CONFIG
from segserve_builder.spec.names import STEP_PREFIX

TAIL_BYTES: Final = 256 * 1024
_ERROR: Final = re.compile(r"^E\d{4} \S+ +\d+ \S+\] (?P<text>.*)$")


class Repository:
    """One group's model repository, written by this process alone. Parsed configurations are cached."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._parsed: dict[str, tuple[int, Ensemble]] = {}
        root.mkdir(parents=True, exist_ok=True)

    def folders(self) -> frozenset[str]:
        """Return the folder names of all models."""
        return frozenset(path.name for path in self.root.iterdir())

    def ensembles(self) -> Mapping[str, Ensemble]:
        """Return the ensemble of each public name; names with an unreadable configuration are left out."""
        public = [name for name in self.folders() if not name.startswith(STEP_PREFIX)]
        ensembles = {name: self._ensemble(name) for name in public}
        return {name: ensemble for name, ensemble in ensembles.items() if ensemble is not None}

    def touch(self, step: str) -> None:
        """Make Triton reload a step: it compares the times of the version's files, not of the configuration."""
        for path in (self.root / step / "1").iterdir():
            os.utime(path)

    def _ensemble(self, name: str) -> Ensemble | None:
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig

        path = self.root / name / CONFIG
        try:
            changed = path.stat().st_ctime_ns
            cached = self._parsed.get(name)
            if cached is None or cached[0] != changed:
                cached = (changed, ensemble_of(text_format.Parse(path.read_text(), ModelConfig())))
                self._parsed[name] = cached
        except (OSError, text_format.ParseError):
            return None
        return cached[1]


def position(log: Path) -> int:
    """Return the current size of the log in bytes, as a start for `reason`."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def reason(log: Path, name: str, since: int) -> str | None:
    """Return the last error about the model `name` logged after the position `since`, None if there is none.

    Triton's API often reports that a load failed without saying why; its log says it.
    """
    errors = [text for text in _errors(log, since) if name in text]
    return errors[-1] if errors else None


def _errors(log: Path, since: int) -> list[str]:
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            # A log that was truncated since then is read from its start.
            file.seek(max(since if since <= size else 0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    matches = (_ERROR.match(line) for line in text.splitlines())
    return [match["text"].strip('"') for match in matches if match]
