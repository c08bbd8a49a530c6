"""What goes into an agent (the assignment) and what comes out of it (the report)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from segserve_builder.spec.model_spec import Artifact, FrozenModel, Golden
from segserve_builder.steps.pipeline import Pipeline


def _own_name(fields: dict[str, Any]) -> str:
    pipeline: Pipeline = fields["pipeline"]
    return pipeline.revision


class AssignedModel(FrozenModel):
    """One revision that a group's servers hold under the model's public name."""

    pipeline: Pipeline
    revision: str = Field(default_factory=_own_name)
    """The revision's name, given once and kept: another version of segserve might find another one."""

    artifact: Artifact
    golden: Golden | None = None
    expose: tuple[Literal["network"], ...] = ()
    second_artifact: Artifact | None = None
    """The file of the pipeline's second network, where it has one."""

    @property
    def model(self) -> str:
        """The public name."""
        return self.pipeline.model


class Assignment(FrozenModel):
    """All that a group's servers hold, at most one revision of a model."""

    models: tuple[AssignedModel, ...] = ()


class ModelState(StrEnum):
    """How far a revision has come on one server."""

    FETCHING = "Fetching"
    LOADING = "Loading"
    PROVING = "Proving"
    READY = "Ready"
    FAILED = "Failed"
    UNLOADING = "Unloading"


class ModelReport(FrozenModel):
    """What one server knows of one revision. `reason` is one CamelCase word."""

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


class Report(FrozenModel):
    """What one server holds. `heartbeat` is in Unix seconds, written anew at least every two seconds."""

    heartbeat: float
    server_ready: bool
    models: tuple[ModelReport, ...] = ()
