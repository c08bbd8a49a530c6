"""Masks as PNG files: label maps of semantic results, id maps of panoptic ones, a file per object of instances."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from segserve.rendering.output_files import save_image, written_whole
from segserve.results.objects import InstanceResult
from segserve.results.result import PanopticResult, SemanticResult
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve.results.result import Result


def write_masks(result: Result, folder: Path, stem: PurePath) -> None:
    """Write the masks of one image into `folder`, under `stem`: the image's relative path without its suffix.

    Semantic: `<name>.png`, pixels are class ids. Panoptic: `<name>.png`, pixels are segment ids (0: none), and
    `<name>.json` describes the segments. Instances: `<name>-001-<class>.png`, white inside the object. Raises
    `BadRequestError` for results without masks.
    """
    target = folder / stem.with_name(f"{stem.name}.png")
    if isinstance(result, SemanticResult):
        _write(result.labels, target)
    elif isinstance(result, PanopticResult):
        _write(result.ids, target)
        with written_whole(target.with_suffix(".json")) as path:
            path.write_text(json.dumps(result.to_rows(), indent=1) + "\n")
    elif isinstance(result, InstanceResult):
        for number, instance in enumerate(result, 1):
            name = re.sub(r"[^\w.-]+", "-", instance.class_name)[:40]
            _write(instance.mask.astype("uint8") * 255, target.with_name(f"{target.stem}-{number:03}-{name}.png"))
    else:
        raise BadRequestError(f"model {result.model!r} returns boxes without masks; --masks does not apply")


def _write(pixels: NDArray[Any], target: Path) -> None:
    import numpy as np
    from PIL import Image

    small = pixels.astype(np.uint8) if pixels.max(initial=0) < 256 else pixels.astype(np.uint16)
    save_image(Image.fromarray(small), target)
