"""Registry of resource kinds and their definitions for Kubernetes: a new kind is a file and an entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from segserve_operator.api.meta import API_GROUP
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.api.segmentation_rollout import SegmentationRollout
from segserve_operator.api.triton_pool import TritonPool

Resource: TypeAlias = SegmentationModel | TritonPool | SegmentationRollout


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `get`: heading, type and JSON path of the value; a `wide` one is shown with `-o wide` only."""

    name: str
    type: str
    path: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class ResourceKind:
    """A kind of resource: its type, its names and its columns in `get`."""

    type: type[SegmentationModel] | type[TritonPool] | type[SegmentationRollout]
    plural: str
    short_names: tuple[str, ...]
    categories: tuple[str, ...]
    columns: tuple[Column, ...]
    scale: Mapping[str, str] | None = None
    """Paths of replicas and labels for `kubectl scale` and autoscalers; None if the kind cannot be scaled."""

    @property
    def kind(self) -> str:
        """The name of the kind in resources."""
        return self.type.__name__

    @property
    def crd_name(self) -> str:
        """The name of the kind's CustomResourceDefinition."""
        return f"{self.plural}.{API_GROUP}"


def _condition(name: str, condition: str, field: str, *, wide: bool = False) -> Column:
    return Column(name, "string", f'.status.conditions[?(@.type=="{condition}")].{field}', wide)


_READY: Final = _condition("Ready", "Ready", "status")
_WHY: Final = (
    _condition("Reason", "Ready", "reason", wide=True),
    _condition("Stalled", "Stalled", "status", wide=True),
    _condition("Degraded", "Degraded", "status", wide=True),
    _condition("Problem", "Degraded", "reason", wide=True),
    _condition("Message", "Ready", "message", wide=True),
)
"""What explains a resource that is not ready, or that is although its spec is not served."""
_AGE: Final = Column("Age", "date", ".metadata.creationTimestamp")

KINDS: Final[Mapping[str, ResourceKind]] = {
    "SegmentationModel": ResourceKind(
        type=SegmentationModel,
        plural="segmentationmodels",
        short_names=("segm",),
        categories=("ml", "segserve"),
        columns=(
            _READY,
            Column("Stable", "string", ".status.roles.stable.revision"),
            Column("Candidate", "string", ".status.roles.candidate.revision"),
            Column("Phase", "string", ".status.phase"),
            Column("Weight", "integer", ".status.weight"),
            Column("SLO", "string", ".status.slo"),
            Column("URL", "string", ".status.url"),
            Column("Device", "string", ".status.device", wide=True),
            *_WHY,
            _AGE,
        ),
    ),
    "TritonPool": ResourceKind(
        type=TritonPool,
        plural="tritonpools",
        short_names=("tpool",),
        categories=("ml", "segserve"),
        columns=(
            _READY,
            Column("Replicas", "integer", ".status.replicas"),
            Column("Models", "integer", ".status.models"),
            Column("URL", "string", ".status.url"),
            Column("Group", "string", ".status.mainGroup", wide=True),
            *_WHY,
            _AGE,
        ),
        scale={
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    ),
    "SegmentationRollout": ResourceKind(
        type=SegmentationRollout,
        plural="segmentationrollouts",
        short_names=("segr",),
        categories=("ml", "segserve"),
        columns=(
            Column("Model", "string", ".spec.model"),
            Column("Candidate", "string", ".spec.candidate"),
            Column("Phase", "string", ".status.phase"),
            Column("Weight", "integer", ".status.weight"),
            Column("Reason", "string", ".status.reason"),
            Column("Stable", "string", ".spec.stable", wide=True),
            Column("Message", "string", ".status.message", wide=True),
            _AGE,
        ),
    ),
}
