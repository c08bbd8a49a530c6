"""A golden set of labelled pictures, answers to them, and tools that ask a listener for them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as coco

from fakes.internal_gateway import InternalListener
from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.sources import folder_digest
from segserve_builder.spec.model_spec import Golden
from segserve_common.http.urls import own_service, service_check
from segserve_operator.adapters.checks.context import CheckContext
from segserve_operator.adapters.checks.gateway import InternalGateway
from segserve_operator.adapters.checks.services import DirectServices
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.core.gates.checks import Check, ResourceSample

SIZE = (24, 32)
STABLE, CANDIDATE = "coins-0000000001", "coins-0000000002"
MODEL = """\
apiVersion: segserve.dev/v1alpha1
kind: SegmentationModel
metadata: {name: coins}
spec:
  artifact: {uri: coins.onnx, sha256: 0f00000000000000000000000000000000000000000000000000000000000abc}
  family: semantic-logits
  classes: [{id: 0, name: table}, {id: 1, name: coin}, {id: 2, name: stamp}]
  preprocess: [decode: {}]
  postprocess: [argmax: {}]
"""


def truth(number: int) -> np.ndarray:
    """Return the label map of the picture `number`: a table, a coin, and on one picture a stamp."""
    pixels = np.zeros(SIZE, np.uint8)
    pixels[4:16, 4 + number : 16 + number] = 1
    if number == 0:
        pixels[20:22, 20:22] = 2
    return pixels


def semantic(pixels: np.ndarray, revision: str) -> dict[str, np.ndarray]:
    """Return the answer that a model gives with a label map."""
    masks = [coco.encode(np.asfortranarray((pixels == each).astype(np.uint8)))["counts"] for each in range(3)]
    return {
        "REVISION": np.array([revision.encode()], np.object_),
        "SIZE": np.array(pixels.shape, np.int32),
        "CLASSES": np.arange(3, dtype=np.int32),
        "MASKS": np.array(masks, np.object_),
    }


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@dataclass
class Pictures:
    """A golden set in `folder`, and what its pictures show."""

    folder: Path
    shown: dict[bytes, np.ndarray] = field(default_factory=dict)

    def write(self, count: int = 6, *, labels: str = "labelMap") -> None:
        """Write `count` pictures; `labels` is labelMap, labels or none."""
        cases = []
        self.folder.mkdir(exist_ok=True)
        for number in range(count):
            pixels = truth(number)
            picture = png(np.full((*SIZE, 3), number, np.uint8))
            (self.folder / f"{number}.png").write_bytes(picture)
            self.shown[picture] = pixels
            answer = {name: _plain(array) for name, array in semantic(pixels, "").items() if name != "REVISION"}
            case: dict[str, Any] = {"image": f"{number}.png", "expected": answer}
            if labels == "labelMap":
                (self.folder / f"truth-{number}.png").write_bytes(png(pixels))
                case["labelMap"] = f"truth-{number}.png"
            elif labels == "labels":
                case["labels"] = answer
            cases.append(case)
        (self.folder / "golden.json").write_text(json.dumps({"cases": cases}))

    def revision(self, uri: str | None = None) -> AssignedModel:
        """Return the record of a revision with this golden set."""
        golden = Golden(uri=uri or str(self.folder), sha256=folder_digest(self.folder))
        return SegmentationModel.model_validate(yaml.safe_load(MODEL)).assigned.model_copy(update={"golden": golden})

    def answering(
        self, revision: str, change: Callable[[np.ndarray], np.ndarray] = np.copy
    ) -> Callable[[bytes], dict[str, np.ndarray]]:
        """Return what answers the pictures rightly but for a change."""
        return lambda image: semantic(change(self.shown[image]), revision)


def _plain(array: np.ndarray) -> list[Any]:
    return [item.decode() if isinstance(item, bytes) else item for item in array.tolist()]


@dataclass
class Servers:
    """A source of samples, one a look."""

    memory: list[float]

    async def look(self, group: str) -> ResourceSample:
        return ResourceSample({group: self.memory.pop(0)})


def context_of(listener: InternalListener | None = None, *, local: bool = True, memory: Any = ()) -> CheckContext:
    """Return tools whose gateway is the listener; without one there is none."""

    async def nowhere() -> str | None:
        return None

    gateway = InternalGateway(listener.address if listener is not None else nowhere)
    services = DirectServices(own_service if local else service_check((), "gates.hosts"))
    return CheckContext(gateway, Servers(list(memory)), services)


def check_of(purpose: Any, key: str = "coins-1/probe/0", **more: Any) -> Check:
    return Check(key, "coins", purpose, "main", STABLE, "own", CANDIDATE, **more)


def numbers(pairs: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    return {name: (round(candidate, 3), round(stable, 3)) for name, (candidate, stable) in pairs.items()}
