"""Resources of networks that a test has written."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def model(name: str, file: Path, **spec: Any) -> dict[str, Any]:
    """Return the SegmentationModel that serves an ONNX file."""
    artifact = {"uri": file.as_uri(), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": {"name": name},
        "spec": {"artifact": artifact, **spec},
    }
