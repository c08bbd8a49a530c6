"""The agent's interface as JSON without defaults: the assignment it reads and the report it writes."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError

from segserve_builder.spec.model_spec import Artifact, FrozenModel, Golden, ModelMetrics
from segserve_builder.spec.reading import read_tolerantly
from segserve_builder.steps.pipeline import NetworkArtifact, NetworkRole, Pipeline

REPORT_FILE: Final = "report.json"
"""Name of the report in a group's folder; it is written when it changes."""
HEARTBEAT_FILE: Final = "heartbeat"
"""Name of the file whose time an agent renews at least every two seconds."""
_UNITS: Final = 65534
"""Steps of a packed quality between 0 and 1; `_NOT_MEASURED` stands for NaN."""
_NOT_MEASURED: Final = 65535


def _own_name(fields: dict[str, Any]) -> str:
    pipeline: Pipeline = fields["pipeline"]
    return pipeline.revision


class GoldenTrial(FrozenModel):
    """A golden set that is to replace the one that a revision was proved with; None stands for the built-in image."""

    golden: Golden | None = None


class GoldenScoring(FrozenModel):
    """A golden set that a proved revision is scored on every `interval_s`, and at once when `round` changes."""

    golden: Golden
    interval_s: float = Field(gt=0)
    round: int = 0


class AnswerCounting(FrozenModel):
    """That servers report what their steps count of a revision's answers, and how often."""

    interval_s: float = Field(gt=0)


class AssignedModel(FrozenModel):
    """One revision that a group's servers hold under the model's public name."""

    pipeline: Pipeline
    revision: str = Field(default_factory=_own_name)
    """The revision's name, kept as assigned: another version of segserve might compute another one."""

    artifact: Artifact
    golden: Golden | None = None
    expose: tuple[Literal["network"], ...] = ()
    second_artifact: Artifact | None = None
    """The file of the pipeline's second network, if it has one."""

    light_artifact: Artifact | None = None
    """The file of its cascade's light network, if it has one."""

    decoder_artifact: Artifact | None = None
    """The file of its prompt decoder, if it has one."""

    metrics: ModelMetrics = ModelMetrics()
    """What the steps count of answers; it changes neither the revision nor an answer."""

    processes: Literal["own", "shared"] | None = None
    """Whether its steps share processes with other models'; it changes neither the revision nor an answer.

    None by default: records are named by all their fields that are not None, and keep their names.
    """

    trial: GoldenTrial | None = None
    """What the revision is tried with while it serves, whatever the outcome. Assignments have it, records never do."""

    scoring: GoldenScoring | None = None
    """What the revision is scored on during a rollout. Assignments have it, records never do."""

    counting: AnswerCounting | None = None
    """That its answers are watched for drift. Assignments have it, records never do."""

    @property
    def model(self) -> str:
        """The public name."""
        return self.pipeline.model

    @property
    def networks(self) -> dict[NetworkRole, NetworkArtifact]:
        """Its networks by role."""
        found: dict[NetworkRole, NetworkArtifact] = {"first": NetworkArtifact(self.pipeline, self.artifact)}
        if self.pipeline.second is not None and self.second_artifact is not None:
            found["second"] = NetworkArtifact(self.pipeline.second, self.second_artifact)
        if self.pipeline.light is not None and self.light_artifact is not None:
            found["light"] = NetworkArtifact(self.pipeline.light, self.light_artifact)
        if self.decoder_artifact is not None:
            found["decoder"] = NetworkArtifact(self.pipeline, self.decoder_artifact)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value without defaults."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


class Assignment(FrozenModel):
    """All models of a group's servers, at most one revision of each."""

    models: tuple[AssignedModel, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value without defaults."""
        return {"models": [model.to_json() for model in self.models]}


class ModelState(StrEnum):
    """State of a revision on one server."""

    FETCHING = "Fetching"
    LOADING = "Loading"
    PROVING = "Proving"
    READY = "Ready"
    FAILED = "Failed"
    UNLOADING = "Unloading"


class ProofReport(FrozenModel):
    """Proof of a revision: the digest of its golden set, None for the built-in image, and the number of images.

    `cascade_loss` is the bound of a cascade's expected loss, if its spec declares one. `devices` are the devices of the
    revision's networks, `cpu` or `gpu`, and `gpus` the server's GPUs with driver and compute capability.
    """

    golden_sha256: str | None = None
    images: int = 1
    cascade_loss: float | None = None
    devices: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()


class TrialReport(FrozenModel):
    """The outcome of a trial of `golden`: passed with `images`, failed with a CamelCase `reason`, or neither yet."""

    golden: Golden | None = None
    images: int = 0
    reason: str = ""
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether the revision gave all the expected answers."""
        return self.images > 0


class ScoreReport(FrozenModel):
    """Quality of a revision's answers to the golden set `golden_sha256`, on one server; not yet known if `images` is 0.

    `qualities` has the values of the first images in the set's own order, and `classes` the values of the classes in
    its labels, both packed; `slices` are the names of those images' slices, and `sliced` which image is of which.
    `at_limit` is the number of answers that reached the limit of objects. `iou`, `boundary_iou`, `recall`, `ap`
    and `ece` are means over all. A CamelCase `reason` says why the latest replay
    has no scores; the scores of an earlier replay stay.
    """

    golden_sha256: str
    images: int = 0
    labelled: bool = True
    qualities: str = ""
    classes: str = ""
    classes_left_out: int = 0
    slices: tuple[str, ...] = ()
    sliced: str = ""
    at_limit: int = 0
    iou: float | None = None
    boundary_iou: float | None = None
    recall: float | None = None
    ap: float | None = None
    ece: float | None = None
    reason: str = ""
    message: str = ""


MAX_HISTOGRAMS: Final = 64
"""Most histograms of one revision, slices not counted; agents report no more."""
MAX_SLICE_HISTOGRAMS: Final = 128
"""Most histograms of all slices of a revision together."""
MAX_REPORTED_SLICES: Final = 18
"""Most slices that are reported: each then has histograms of its images and of empty answers."""
MAX_BUCKETS: Final = 16
Bucket = Annotated[int, Field(ge=0, le=2**53)]
CountedHistograms = Annotated[
    Mapping[
        Annotated[str, Field(max_length=128)],
        Annotated[tuple[Bucket, ...], Field(min_length=2, max_length=MAX_BUCKETS)],
    ],
    Field(max_length=MAX_HISTOGRAMS),
]


class AnswersReport(FrozenModel):
    """Counts by one server of a revision's answers since it started: observations by bucket, by histogram.

    `slices` are the counts of requests with labels that `ModelMetrics.slices` declares, for the first labels only.
    """

    histograms: CountedHistograms = Field(default={})
    slices: Annotated[
        Mapping[Annotated[str, Field(max_length=40)], CountedHistograms], Field(max_length=MAX_REPORTED_SLICES)
    ] = {}


MAX_GOLDEN_SLICES: Final = 32


def pack_qualities(qualities: Sequence[float]) -> str:
    """Return qualities (0 to 1, or NaN) as base64 of two bytes each, exact to 1e-5."""
    return base64.b64encode(struct.pack(f"<{len(qualities)}H", *map(_units, qualities))).decode()


def unpack_qualities(text: str) -> tuple[float, ...]:
    """Return the qualities that `pack_qualities` packed; raises ValueError if the text is something else."""
    return tuple(_quality(units) for units in _unpacked(text, 1))


def pack_classes(qualities: Iterable[tuple[int, float]]) -> str:
    """Return the qualities of classes by id as base64 of four bytes each."""
    pairs = [(number, _units(quality)) for number, quality in qualities]
    return base64.b64encode(b"".join(struct.pack("<2H", *pair) for pair in pairs)).decode()


def unpack_classes(text: str) -> dict[int, float]:
    """Return the qualities that `pack_classes` packed; raises ValueError if the text is something else."""
    numbers = _unpacked(text, 2)
    return dict(zip(numbers[::2], map(_quality, numbers[1::2]), strict=True))


def pack_slices(slices: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the names of images' slices ("" for none), and base64 of one byte for each image; both empty without any.

    Slices beyond the 32nd are `other`.
    """
    names = list(dict.fromkeys(name for name in slices if name))
    kept = (*names[:MAX_GOLDEN_SLICES], *(["other"] if len(names) > MAX_GOLDEN_SLICES else []))
    if not kept:
        return (), ""
    numbers = {name: min(at, len(kept)) for at, name in enumerate(names, start=1)}
    return kept, base64.b64encode(bytes(numbers.get(name, 0) for name in slices)).decode()


def unpack_slices(names: Sequence[str], sliced: str) -> tuple[str, ...]:
    """Return the slice of each image that `pack_slices` packed; raises ValueError if the text is something else."""
    known = ("", *names)
    numbers = base64.b64decode(sliced, validate=True)
    if any(number >= len(known) for number in numbers):
        raise ValueError(f"an image of slice {max(numbers)}; there are {len(names)}")
    return tuple(known[number] for number in numbers)


def _units(quality: float) -> int:
    return _NOT_MEASURED if math.isnan(quality) else round(min(max(quality, 0.0), 1.0) * _UNITS)


def _quality(units: int) -> float:
    return math.nan if units == _NOT_MEASURED else units / _UNITS


def _unpacked(text: str, each: int) -> tuple[int, ...]:
    packed = base64.b64decode(text, validate=True)
    if len(packed) % (2 * each):
        raise ValueError(f"{len(packed)} bytes of packed qualities; a multiple of {2 * each} is expected")
    return struct.unpack(f"<{len(packed) // 2}H", packed)


class ModelReport(FrozenModel):
    """One revision on one server. `reason` is a CamelCase word, `load_s` how long it took to load.

    After a failure `attempts` is the number of failures in a row, and `retryable` says whether a retry may soon help;
    a revision that Triton cannot load is retried forever, after several attempts with `retryable` False.

    `proved` is None before the proof, and always from an agent of a version without trials.
    """

    model: str
    revision: str
    state: ModelState
    reason: str = ""
    message: str = ""
    retryable: bool = False
    attempts: int = 0
    artifact_verified: bool = False
    loaded: bool = False
    proof: Literal["golden", "builtin"] | None = None
    steps: tuple[str, ...] = ()
    load_s: float = 0.0
    proved: ProofReport | None = None
    trial: TrialReport | None = None
    scores: ScoreReport | None = None
    """The outcome of `AssignedModel.scoring`; None unless requested."""

    answers: AnswersReport | None = None
    """The outcome of `AssignedModel.counting`; None unless requested."""

    @classmethod
    def read(cls, plain: Any) -> Self:
        """Return the report of a JSON value as far as it can be read; raises `ValidationError` if too little can."""
        return read_tolerantly(cls, plain)[0]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value without defaults."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


class Report(FrozenModel):
    """All revisions on one server."""

    server_ready: bool
    models: tuple[ModelReport, ...] = ()

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Self:
        """Return the report of a JSON value.

        Models whose report cannot be read are left out. Raises `ValidationError` if it does not say whether
        the server is ready.
        """
        return cls.model_validate(
            {"serverReady": plain.get("serverReady"), "models": read_reports(plain.get("models", ()))}
        )


def read_reports(plain: Iterable[Any]) -> tuple[ModelReport, ...]:
    """Return the reports of JSON values, without those that cannot be read."""
    reports = []
    for each in plain:
        with suppress(ValidationError, TypeError, ValueError):
            reports.append(ModelReport.read(each))
    return tuple(reports)
