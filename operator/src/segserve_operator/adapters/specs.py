"""From a model's manifest to what its spec asks for, or why that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segserve_operator.api.errors import SpecError
from segserve_operator.api.loading import parse
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.core.failure import Failure
from segserve_operator.core.observed import Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping


def wanted_of(manifest: Mapping[str, Any]) -> Wanted | Failure:
    """Read a SegmentationModel's spec."""
    name = manifest["metadata"]["name"]
    try:
        model = parse({key: value for key, value in manifest.items() if key != "status"}, name)
    except SpecError as error:
        return Failure(error.reason, str(error))
    assert isinstance(model, SegmentationModel)
    return Wanted(
        assigned=model.spec.assigned(name),
        keep_previous_s=model.spec.keep_previous.total_seconds(),
        allow_class_changes=model.spec.allow_class_changes,
    )
