"""All that a model can answer."""

from __future__ import annotations

from typing import TypeAlias

from segserve.detections import DetectionResult, KeypointResult
from segserve.instances import InstanceResult
from segserve.panoptic import PanopticResult
from segserve.semantic import SemanticResult

Result: TypeAlias = SemanticResult | InstanceResult | PanopticResult | DetectionResult | KeypointResult
