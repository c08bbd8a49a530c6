"""The agent's interface as JSON: the assignment it reads and the report it writes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from segserve_builder.spec.model_spec import Artifact, FrozenModel, Golden
from segserve_builder.steps.pipeline import Pipeline


def _own_name(fields: dict[str, Any]) -> str:
    pipeline: Pipeline = fields["pipeline"]
    return pipeline.revision


class GoldenTrial(FrozenModel):
    """A golden set that is to replace the one that a revision was proved with; None stands for the built-in image."""

    golden: Golden | None = None


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

    trial: GoldenTrial | None = None
    """What the revision is tried with while it serves, whatever the outcome. Assignments have it, records never do."""

    @property
    def model(self) -> str:
        """The public name."""
        return self.pipeline.model


class Assignment(FrozenModel):
    """All models of a group's servers, at most one revision of each."""

    models: tuple[AssignedModel, ...] = ()


class ModelState(StrEnum):
    """State of a revision on one server."""

    FETCHING = "Fetching"
    LOADING = "Loading"
    PROVING = "Proving"
    READY = "Ready"
    FAILED = "Failed"
    UNLOADING = "Unloading"


class ProofReport(FrozenModel):
    """Proof of a revision: the digest of its golden set, None for the built-in image, and the number of images."""

    golden_sha256: str | None = None
    images: int = 1


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


class ModelReport(FrozenModel):
    """One revision on one server. `reason` is a CamelCase word, `load_s` how long it took to load.

    `proved` is None before the proof, and always from an agent of a version that knows no trials.
    """

    model: str
    revision: str
    state: ModelState
    reason: str = ""
    message: str = ""
    retryable: bool = False
    artifact_verified: bool = False
    loaded: bool = False
    proof: Literal["golden", "builtin"] | None = None
    steps: tuple[str, ...] = ()
    load_s: float = 0.0
    proved: ProofReport | None = None
    trial: TrialReport | None = None


class Report(FrozenModel):
    """All revisions on one server. `heartbeat` is a Unix time in seconds, renewed at least every two seconds."""

    heartbeat: float
    server_ready: bool
    models: tuple[ModelReport, ...] = ()
