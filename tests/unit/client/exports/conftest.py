"""Everything exported once, and read back by the tools that it is for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segserve import PanopticResult
from segserve.exports.cvat import merge
from segserve.exports.label_studio import labelling_config
from segserve.results.result import Result
from tools import PEERS

from .results import cases

ROOT = Path(__file__).parents[4]
READER = ROOT / "tests/oracles/read_exports.py"


def write(folder: Path, result: Result) -> None:
    folder.mkdir()
    height, width = result.size
    picture = np.broadcast_to(np.arange(width, dtype=np.uint8)[:, None], (height, width, 3))
    Image.fromarray(picture).save(folder / "photo.png", compress_level=1)
    for shapes in ("mask", "polygon"):
        embedded = picture if height < 100 else None
        file = result.to_labelme("photo.png", image=embedded, shapes=shapes)
        (folder / f"labelme-{shapes}.json").write_text(json.dumps(file))
        task = result.to_label_studio("photo.png", shapes=shapes)
        (folder / f"label-studio-{shapes}.json").write_text(json.dumps(task))
        (folder / f"cvat-{shapes}.xml").write_text(result.to_cvat("photo.png", shapes=shapes), "utf-8")
    if height < 100:
        both = [result.to_cvat(name) for name in ("photo.png", "again.png")]
        (folder / "cvat-merged.xml").write_text(merge(both), "utf-8")
    (folder / "label-studio.xml").write_text(labelling_config(result), "utf-8")
    if isinstance(result, PanopticResult):
        document, png = result.to_coco_panoptic(file_name="photo.png")
        (folder / "panoptic.json").write_text(json.dumps(document))
        (folder / "panoptic.png").write_bytes(png)


@pytest.fixture(scope="session")
def read_back(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each result, with what each tool read in `<export>.npz`."""
    folder = tmp_path_factory.mktemp("exports")
    for name, result in cases().items():
        write(folder / name, result)
    done = subprocess.run([PEERS / "python", READER, folder], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder
