"""Networks that another engine runs, on the real server, and a device that it lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.coins import variant, write
from bench.platform import Running
from examples.coins.in_process import resources
from raw_inference import RawRequest, image, send
from segserve_builder.golden.judging import Case, GoldenTolerance, compare, record
from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.runtime import ensure_runtime

pytestmark = pytest.mark.platform

TOLERANCE = GoldenTolerance(iou=0.999, score=0.001)
"""Of OpenVINO's answers against those of ONNX Runtime: of each mask's IoU, and of scores."""


def answer(running: Running, model: str, photo: bytes) -> dict[str, np.ndarray]:
    request = RawRequest([image(photo)], parameters={"encoding": "rle"}, model=model)
    outputs = send(running.url, "http", request).arrays()
    return {name: np.array(value, object) if isinstance(value, tuple) else value for name, value in outputs.items()}


def test_openvino_answers_within_a_thousandth_of_onnx_runtime(
    coins: Running, serve: Callable[..., Running], tmp_path: Path, photo: bytes
) -> None:
    models = [variant(model=name, runtime={"maxBatchSize": 1, "engine": "openvino"}) for name in resources()]

    running = serve(write(tmp_path / "models.yaml", *models))  # installs OpenVINO, as it is asked for

    for name in resources():
        expected = Case.model_validate(record(answer(coins, name, photo), "coins.png", TOLERANCE))
        found = answer(running, name, photo)
        compare(expected, found)
        assert found["REVISION"].tolist() != answer(coins, name, photo)["REVISION"].tolist()
    configs = [path.read_text() for path in running.state.glob("groups/main/repository/*--net-*/config.pbtxt")]
    native = sum('backend: "onnxruntime"' in config for config in configs)
    servers = [each for each in running.processes() if "triton" in Path(each.cmdline()[0]).name]
    loaded = [each for each in servers if any("openvino_intel_cpu" in mapped.path for mapped in each.memory_maps())]
    assert len(configs) == len(models)
    assert len(loaded) == len(models) - native + bool(native)  # Triton runs its own in one process
    assert bool(native) == (ensure_runtime(cache_folder()).target.backend == "onnxruntime")
