from __future__ import annotations

from typing import Any

import pytest
import yaml

from segserve_operator.api.loading import load
from segserve_operator.api.meta import SpecError
from segserve_operator.api.segmentation_model import SegmentationModel

COINS = """\
apiVersion: segserve.dev/v1alpha1
kind: SegmentationModel
metadata: {name: coins}
spec:
  artifact:
    uri: coins.onnx
    sha256: 0f00000000000000000000000000000000000000000000000000000000000abc
    provenance: {source: examples/coins}
  family: semantic-logits
  input: {dtype: UINT8, colour: GREY}
  classes:
    - {id: 0, name: background}
    - {id: 1, name: coin, colour: "#ffcc00"}
  preprocess:
    - decode: {}
    - resize: {mode: keep, multipleOf: 16, padding: edge}
  postprocess:
    - argmax: {}
    - removeSmallRegions: {minArea: 150}
  output: {encoding: png}
  runtime: {maxBatchSize: 8}
  golden: {uri: golden/, sha256: 1100000000000000000000000000000000000000000000000000000000000abc}
  expose: [network]
  pool: default
  keepPrevious: 1h
"""


@pytest.fixture
def coins_text() -> str:
    """The file of a model that finds coins, as a user would write it."""
    return COINS


@pytest.fixture
def coins_value(coins_text: str) -> dict[str, Any]:
    """The same as plain JSON."""
    value: dict[str, Any] = yaml.safe_load(coins_text)
    return value


def loaded(value: dict[str, Any], **spec: Any) -> SegmentationModel:
    """Return the model of a resource, some fields of whose spec are others."""
    (model,) = load(yaml.safe_dump({**value, "spec": {**value["spec"], **spec}}), "model.yaml")
    return model


def problem(value: dict[str, Any], **spec: Any) -> str:
    """Return why such a resource is refused."""
    with pytest.raises(SpecError) as refused:
        loaded(value, **spec)
    return str(refused.value)
