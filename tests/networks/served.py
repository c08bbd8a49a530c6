"""Resources of networks that a test has written, and the photograph that they are asked about."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def photograph(height: int, width: int) -> NDArray[np.uint8]:
    """Return the astronaut in a size, (height, width, 3)."""
    import skimage.data

    return np.asarray(cv2.resize(skimage.data.astronaut(), (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def model(name: str, file: Path, **spec: Any) -> dict[str, Any]:
    """Return the SegmentationModel that serves an ONNX file."""
    artifact = {"uri": file.as_uri(), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": {"name": name},
        "spec": {"artifact": artifact, **spec},
    }
