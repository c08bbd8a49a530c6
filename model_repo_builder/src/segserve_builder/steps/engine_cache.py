"""Folder in which a Python step keeps the engines that TensorRT builds of its network."""

from __future__ import annotations

import os
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from segserve_builder.errors import writing
from segserve_builder.gpus import visible_gpus
from segserve_builder.spec.names import digest

FOLDER_VARIABLE: Final = "SEGSERVE_ENGINE_CACHE"
"""Environment variable of Triton: the folder of all engines. Default: `.cache/segserve/engines` of the user."""


def engine_folder(artifact_sha256: str) -> Path:
    """Return the folder of a file's engines, created only for this user: engines are code.

    Engines of one combination of file, GPUs, driver, and versions of ONNX Runtime and TensorRT are of no use to another
    one. ONNX Runtime names engines only by the graph, so engines of other weights would be taken for this file's.
    Raises `PublishError`.
    """
    packages = sorted(
        {
            f"{each.name}=={each.version}"
            for each in distributions()
            if each.name.lower().startswith(("onnxruntime", "tensorrt"))
        }
    )
    built_for = digest({"artifact": artifact_sha256, "gpus": list(visible_gpus()), "packages": packages})
    root = Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "segserve" / "engines")
    folder = root / built_for
    with writing(folder):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
    return folder
