"""What the files of a model repository say, read anew only where they changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from segserve_builder.agent.server import ensemble_of
from segserve_builder.render.publish import CONFIG
from segserve_builder.spec.names import STEP_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from segserve_builder.agent.state import Ensemble


class Repository:
    """One group's repository, of which this process is the only writer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[str, tuple[int, Ensemble]] = {}
        root.mkdir(parents=True, exist_ok=True)

    def folders(self) -> frozenset[str]:
        """Return the names of all models in it."""
        return frozenset(path.name for path in self.root.iterdir())

    def ensembles(self) -> Mapping[str, Ensemble]:
        """Return what the files say of each public name."""
        public = [name for name in self.folders() if not name.startswith(STEP_PREFIX)]
        found = {name: self._ensemble(name) for name in public}
        return {name: ensemble for name, ensemble in found.items() if ensemble is not None}

    def touch(self, step: str) -> None:
        """Make the server take a step's files for new ones; a touched configuration alone reloads nothing."""
        for path in (self.root / step / "1").iterdir():
            os.utime(path)

    def _ensemble(self, name: str) -> Ensemble | None:
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig

        path = self.root / name / CONFIG
        try:
            changed = path.stat().st_ctime_ns
            known = self._read.get(name)
            if known is None or known[0] != changed:
                known = (changed, ensemble_of(text_format.Parse(path.read_text(), ModelConfig())))
                self._read[name] = known
        except (OSError, text_format.ParseError):
            return None
        return known[1]
