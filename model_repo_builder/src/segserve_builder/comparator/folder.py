"""The folder that a gateway and its comparator share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, TypeAdapter


class Comparison(BaseModel):
    """Two groups that a model's copied requests are sent to, at most `requests_per_s`.

    has_baseline: stable is also compared with itself.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    stable: str
    candidate: str
    requests_per_s: float
    has_baseline: bool = False


COMPARISONS: Final = TypeAdapter(dict[str, Comparison | None])
"""Comparisons by model; None of one that has ended, and whose pairs may be kept for a while."""


@dataclass(frozen=True, slots=True)
class ComparatorFolder:
    """A folder with UNIX sockets and a file.

    Envoy sends copies of callers' requests over HTTP/1.1 to `copies`, also of gRPC requests, framed as gRPC frames
    them. `comparisons` is replaced whole by the gateway's side, and contains `COMPARISONS` as JSON. At `control`, over
    HTTP/1.1, the comparator serves its counts (GET /pairs) and the pairs that differ most (GET /sheet?model=NAME).
    """

    path: Path

    @property
    def copies(self) -> Path:
        """The socket for copies of requests."""
        return self.path / "copies.sock"

    @property
    def control(self) -> Path:
        """The socket for counts and sheets."""
        return self.path / "control.sock"

    @property
    def comparisons(self) -> Path:
        """The file that says what to compare."""
        return self.path / "comparisons.json"
