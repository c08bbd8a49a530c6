"""Resources as a person reads them in a shell or a notebook."""

from __future__ import annotations

from fakes import rollout_records as records
from segserve_operator.api.segmentation_rollout import SegmentationRollout
from segserve_platform.control.typed import typed
from segserve_platform.resources import ObjectMeta, SegmentationModel, TritonPool

SPEC = {
    "artifact": {"uri": "s3://models/coins.onnx", "sha256": "0" * 64},
    "family": "semantic-logits",
    "classes": [{"id": number, "name": f"class-{number}"} for number in range(300)],
    "preprocess": [{"decode": {}}],
    "postprocess": [{"argmax": {}}],
}


def test_a_model_is_one_line_with_its_readiness_and_revisions() -> None:
    stored = records.coins(records.standing(), **SPEC)
    model = typed(stored, SegmentationModel)

    assert repr([model]) == (
        f"[SegmentationModel('coins', ready='Unknown', stable={records.STABLE!r}, candidate={records.CANDIDATE!r}, "
        "weight=25)]"
    )
    assert str(model).startswith("'coins' ready='Unknown' stable=")


def test_pools_and_records_are_one_line() -> None:
    record = typed(records.manifest(records.record()), SegmentationRollout)

    assert repr(TritonPool(metadata=ObjectMeta(name="default"))) == (
        "TritonPool('default', replicas=None, models=None, url=None)"
    )
    assert repr(record).startswith(f"SegmentationRollout({records.NAME!r}, phase='Progressing', weight=")
