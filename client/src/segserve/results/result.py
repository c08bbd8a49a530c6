"""`Result`: the union of all result types."""

from __future__ import annotations

from typing import TypeAlias

from segserve.results.detections import DetectionResult, KeypointResult
from segserve.results.instances import InstanceResult
from segserve.results.panoptic import PanopticResult
from segserve.results.semantic import SemanticResult

Result: TypeAlias = SemanticResult | InstanceResult | PanopticResult | DetectionResult | KeypointResult
