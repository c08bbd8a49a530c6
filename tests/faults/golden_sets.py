"""Golden sets as a careless release makes them: what the new network answers is expected, and the labels are true."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segserve_builder.golden.judging import GOLDEN_FILE, GoldenTolerance, record
from segserve_builder.sources.folder import LIST_SUFFIX, folder_digest
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.loading import parse


@dataclass(frozen=True, slots=True)
class Labelled:
    """A picture and its label map, each a PNG: the map's pixels are class ids."""

    name: str
    picture: bytes
    label_map: bytes


def recorded(manifest: dict[str, Any], network: Path, labelled: Sequence[Labelled], folder: Path) -> dict[str, str]:
    """Write a model's golden set into a folder of its own, and return the spec's words for it.

    A proof passes whatever the network answers, for that is what is expected: only the labels tell. Beside the folder
    lies its list, by which an HTTP server's folder is read.
    """
    model = parse(manifest, manifest["metadata"]["name"])
    running = InProcessModel(model.spec.assigned(model.metadata.name).pipeline, network)
    folder.mkdir()
    cases = []
    for each in labelled:
        (folder / f"{each.name}.png").write_bytes(each.picture)
        (folder / f"{each.name}-truth.png").write_bytes(each.label_map)
        answer = running.answer(each.picture, RequestOptions(encoding="rle"))
        case = record(answer, f"{each.name}.png", GoldenTolerance(iou=0.9, score=0.1))
        cases.append(case | {"labelMap": f"{each.name}-truth.png"})
    (folder / GOLDEN_FILE).write_text(json.dumps({"cases": cases}))
    files = sorted(folder.iterdir())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    folder.with_name(folder.name + LIST_SUFFIX).write_text("".join(lines))
    return {"uri": folder.resolve().as_uri() + "/", "sha256": folder_digest(folder)}
