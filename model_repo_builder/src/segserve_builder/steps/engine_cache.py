"""Folders of the engines that TensorRT builds of networks, and what an engine is built for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Final

from segserve_builder.errors import writing
from segserve_builder.gpus import visible_gpus
from segserve_builder.spec.names import digest
from segserve_builder.steps.step_options import NetOptions, engines_name

FOLDER_VARIABLE: Final = "SEGSERVE_ENGINES"
"""Environment variable of Triton: the folder of its engines. Without it they are the user's, for these GPUs."""
LIBRARIES: Final = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"), Path("/opt/tensorrt/lib"))


def tensorrt_options(options: NetOptions) -> dict[str, Any] | None:
    """Return ONNX Runtime's options for TensorRT, None if another engine runs the network.

    The folder of the engines is created only for this user: engines are code. Raises `PublishError`.
    """
    if (name := engines_name(options.artifact_sha256, options)) is None:
        return None
    root, own = os.environ.get(FOLDER_VARIABLE), Path.home() / ".cache/segserve/engines"
    folder = Path(root, name) if root else own / built_for(name, visible_gpus())
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(folder)}
    found |= {"trt_timing_cache_enable": True, "trt_timing_cache_path": str(folder)}
    return found if options.precision is None else {**found, f"trt_{options.precision}_enable": True}


def built_for(name: str, gpus: Sequence[str]) -> str:
    """Return the digest of all that the engines of that name fit: GPUs with their driver, and versions of libraries."""
    packages = {f"{each.name}=={each.version}" for each in distributions()}
    versions = {each for each in packages if each.lower().startswith(("onnxruntime", "tensorrt"))}
    versions |= {each.resolve().name for folder in LIBRARIES for each in folder.glob("libnvinfer.so*")}
    image = os.environ.get("NVIDIA_TRITON_SERVER_VERSION", "")  # it has one build of ONNX Runtime
    return digest({"engines": name, "gpus": list(gpus), "image": image, "versions": sorted(versions)})
