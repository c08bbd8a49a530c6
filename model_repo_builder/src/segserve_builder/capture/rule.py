"""Rules of what is captured of a model, and the folder that a gateway and its capture service share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter


class CaptureReason(StrEnum):
    """Why a request became a sample."""

    UNCERTAIN = "uncertain"
    DISAGREE = "disagree"
    ERROR = "error"
    EMPTY = "empty"
    DRIFT = "drift"
    SHARE = "share"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class CapturedClass(_Value):
    """A class of the model."""

    id: int
    name: str


class RedactionRule(_Value):
    """Pixels that are made unrecognisable: the pixels of the classes `ids` in an answer.

    With a `model`, the model is called in `group`, and the ids are its own.
    """

    ids: tuple[int, ...]
    method: Literal["fill", "blur"] = "fill"
    model: str = ""
    group: str = ""


class CaptureRule(_Value):
    """How a gateway's capture service samples one model.

    It sends each copy again to the group of stable, and to the group `other` if there is one. `per_minute` is how many
    samples are written at most. Without `when` every copy is a sample; `drift` is there while the model drifts, and
    every answered copy meets it. `threshold` is the score that objects need, None if the model's stages have no
    threshold.
    """

    group: str
    revision: str
    other: str = ""
    share: float
    per_minute: int
    when: tuple[CaptureReason, ...] = ()
    slices: tuple[str, ...] = ()
    redact: RedactionRule | None = None
    sink: str
    retention_s: float
    classes: tuple[CapturedClass, ...] = ()
    colour: Literal["RGB", "GREY"] = "RGB"
    dtype: Literal["UINT8", "UINT16"] = "UINT8"
    max_pixels: int
    orientation: Literal["apply", "ignore"] = "apply"
    window: tuple[int, int] | None = None
    threshold: float | None = None
    as_rle: bool = False


SINK_SCHEMES: Final = ("file", "s3", "gs", "az")
MAX_COPIES_PER_S: Final = 2.0
"""Copies per second of one model and worker thread of a gateway: each costs one to three more inferences."""
RULES: Final = TypeAdapter(dict[str, CaptureRule])
"""Rules by model."""


@dataclass(frozen=True, slots=True)
class CaptureFolder:
    """A folder with UNIX sockets and a file.

    Envoy sends copies of callers' requests to `copies`, as to a comparator. `rules` is replaced whole by the gateway's
    side, and contains `RULES` as JSON. At `control` the service serves its counts (GET /metrics).
    """

    path: Path

    @property
    def copies(self) -> Path:
        """The socket for copies of requests."""
        return self.path / "copies.sock"

    @property
    def control(self) -> Path:
        """The socket for metrics."""
        return self.path / "control.sock"

    @property
    def rules(self) -> Path:
        """The file that says what to capture."""
        return self.path / "rules.json"
