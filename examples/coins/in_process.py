"""The models of model.yaml, run in this process by the stages that are served, without Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.loading import load
from segserve_operator.api.segmentation_model import SegmentationModel

RESOURCES: Final = Path(__file__).parent / "model.yaml"


def in_process(resource: SegmentationModel) -> InProcessModel:
    """Return the model of a resource whose artifact is a file beside model.yaml."""
    return InProcessModel(resource.spec.pipeline(resource.metadata.name), RESOURCES.parent / resource.spec.artifact.uri)


def resources() -> dict[str, SegmentationModel]:
    """Return the resources of model.yaml by name."""
    loaded = load(RESOURCES.read_text(), RESOURCES.name)
    return {item.metadata.name: item for item in loaded if isinstance(item, SegmentationModel)}
