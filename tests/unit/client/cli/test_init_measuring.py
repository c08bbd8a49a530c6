"""The bound of images that `segserve init` measures: what a network takes, and what that leaves room for."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from segserve_builder.errors import BadImageError
from segserve_builder.memory import STEP_LIMIT_VARIABLE
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.pipeline import Pipeline
from segserve_platform.cli.init.guess import guess, model_of
from segserve_platform.cli.init.measuring import (
    DEFAULT_MAX_PIXELS,
    Budget,
    Measurement,
    PixelBound,
    TrialRun,
    bound_of,
    measure,
)
from segserve_platform.cli.init.network import Overrides
from segserve_platform.cli.init.writing import golden_answers

EXAMPLES = Path(__file__).parents[4] / "examples"
PHOTO = EXAMPLES / "coins/coins.png"
GB = 10**9
BUDGET = Budget(4 * GB, 30.0)
MEGAPIXELS = (0.25, 1, 4)


def bound(memory_gb: Any, seconds: Any, too_large: int | None = None, budget: Budget = BUDGET) -> PixelBound:
    """Return the bound of runs of 0.25, 1 and 4 megapixels that take `memory_gb(x)` and `seconds(x)`."""
    runs = tuple(TrialRun(int(x * 1e6), int(memory_gb(x) * GB), seconds(x)) for x in MEGAPIXELS)
    found = bound_of(Measurement(runs, None, too_large), budget)
    assert found is not None
    return found


def test_an_image_may_take_three_quarters_of_a_step_and_what_it_takes_is_in_the_reason() -> None:
    found = bound(lambda x: 0.2 + 0.4 * x, lambda x: 0.1 * x)

    assert found.pixels in (6_900_000, 7_000_000)  # 0.2 + 0.4 x 7 = 3 of 4 GB
    assert found.fits
    assert found.reason.startswith("0.4 GB and 0.1 s a megapixel on this machine: ")
    assert "megapixels take 3.0 of the 4.0 GB of a step, and 0.7 of the 30 s of a request" in found.reason


def test_a_slow_network_is_bound_by_the_clients_timeout() -> None:
    found = bound(lambda x: 0.01 * x, lambda x: 2.5 * x)

    assert found.pixels in (9_900_000, 10_000_000)  # 25 of 30 s
    assert "of the 30 s of a request" in found.reason


def test_memory_that_grows_with_the_square_of_pixels_is_bound_as_such() -> None:
    found = bound(lambda x: 0.04 * x * x, lambda x: 0.1 * x)

    assert 8_000_000 <= found.pixels <= 8_700_000  # 0.04 x 8.66^2 = 3


def test_a_network_that_scales_its_images_keeps_the_default() -> None:
    found = bound(lambda _: 0.5, lambda _: 1.0)

    assert (found.pixels, found.fits) == (DEFAULT_MAX_PIXELS, True)


def test_a_network_that_no_size_of_image_makes_fit_is_not_bound_but_marked() -> None:
    found = bound(lambda _: 0.5, lambda x: 40 + 0.01 * x)

    assert (found.pixels, found.fits) == (DEFAULT_MAX_PIXELS, False)


def test_no_image_is_larger_than_the_last_that_was_answered_before_one_that_was_not() -> None:
    assert bound(lambda x: 0.01 * x, lambda x: 0.01 * x, too_large=16_000_000).pixels == 4_000_000


def test_one_run_is_taken_as_proportional_to_its_pixels() -> None:
    found = bound_of(Measurement((TrialRun(500_000, GB, 1.0),)), BUDGET)

    assert found is not None
    assert found.pixels == 1_500_000
    assert bound_of(Measurement((), "no onnxruntime"), BUDGET) is None


def hungry(path: Path, channels: int) -> Path:
    """Write a network of any size that holds `channels` floats for each pixel."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2, "h", "w"])
    weights = [
        helper.make_tensor("wide", TensorProto.FLOAT, [channels, 3, 1, 1], [0.1] * (3 * channels)),
        helper.make_tensor("narrow", TensorProto.FLOAT, [2, channels, 1, 1], [0.1] * (2 * channels)),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "wide"], ["features"]),
        helper.make_node("Softplus", ["features"], ["more"]),
        helper.make_node("Conv", ["more", "narrow"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "g", [image], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


COUNTED = """
import sys
import onnxruntime
from segserve_platform.cli.init import trial_process
run, runs = onnxruntime.InferenceSession.run, []
onnxruntime.InferenceSession.run = lambda *given: (runs.append(1), run(*given))[1]
trial_process.main()
print(len(runs), file=sys.stderr)
"""


@pytest.mark.parametrize("slow_s", [-1.0, math.inf], ids=["slow", "quick"])
@pytest.mark.parametrize("last", ["Identity", "Sigmoid"])
@pytest.mark.parametrize("batch", [1, "n"])
def test_a_network_of_one_size_is_run_as_often_as_the_bound_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float, last: str, batch: int | str
) -> None:
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, size, 64, 64])
        for name, size in (("image", 3), ("logits", 2))
    ]
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [2, 3, 1, 1], [0.1, 0.2, 0.3, -0.1, -0.2, -0.3])
    nodes = [helper.make_node("Conv", ["image", "weights"], ["all"]), helper.make_node(last, ["all"], ["logits"])]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    monkeypatch.setattr("segserve_platform.cli.init.running.SLOW_S", slow_s)
    run, runs = onnxruntime.InferenceSession.run, []
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *given: (runs.append(1), run(*given))[1])

    guessed = guess(tmp_path / "net.onnx", f"{hash((last, batch)) % 2**256:064x}", [PHOTO], Overrides())
    golden_answers(model_of(guessed.spec, guessed.network), guessed.images)

    assert len(guessed.trials) >= 3
    order = {
        "pipeline": pipeline_of(guessed.spec).model_dump(mode="json", by_alias=True, exclude_none=True),
        "artifact": str(tmp_path / "net.onnx"),
        "warm_up": str(PHOTO),
        "images": {str(pixels): str(PHOTO) for pixels in (62_500, 4_000_000)},
        "is_resized": True,
    }
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], input=json.dumps(order), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {"done": True}
    assert int(done.stderr.splitlines()[-1]) == 1
    assert len(runs) + 1 <= (11 if slow_s < 0 else 14), runs
    assert guessed.spec["runtime"]["maxBatchSize"] == (1 if slow_s < 0 and batch == "n" else 8)


def pipeline_of(spec: Any) -> Pipeline:
    parts = {key: spec[key] for key in ("family", "input", "classes", "preprocess", "postprocess", "runtime")}
    return Pipeline.model_validate({"model": "m", "artifactSha256": "0" * 64, "output": {}, **parts})


def test_a_network_that_eats_all_memory_ends_alone_and_is_bound_to_what_it_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = hungry(tmp_path / "hungry.onnx", 1000)  # 8 kB a pixel
    monkeypatch.setenv(STEP_LIMIT_VARIABLE, str(2**28))

    guessed = guess(file, "0" * 64, [PHOTO], Overrides())

    assert guessed.bound is not None
    assert 5_000 < guessed.bound.pixels < 34_000  # which are 256 MiB
    assert guessed.spec["input"]["maxPixels"] == guessed.bound.pixels
    assert guessed.images == ()
    assert any("1 of your 1 images have more than" in remark.text for remark in guessed.remarks)


def test_a_network_that_cannot_answer_the_smallest_image_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = hungry(tmp_path / "hungry.onnx", 1000)
    monkeypatch.setenv(STEP_LIMIT_VARIABLE, str(2**28))
    monkeypatch.setattr("segserve_platform.cli.init.measuring.SIZES", (62_500, 250_000))

    guessed = guess(file, "0" * 64, [PHOTO], Overrides())

    assert guessed.bound is not None, guessed.remarks
    assert (guessed.bound.pixels < 62_500, guessed.images) == (True, ())
    assert any("takes more than the 0.3 GB of a step" in mark.text and not mark.sure for mark in guessed.remarks)


@pytest.mark.parametrize("end", ["os._exit(127)", "os.kill(os.getpid(), signal.SIGSEGV)"], ids=["glibc's", "C's"])
def test_a_process_that_ends_where_no_code_can_report_it_had_too_large_an_image(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    ended = (sys.executable, "-c", f"import os, signal; {end}")
    monkeypatch.setattr("segserve_platform.cli.init.measuring.python", lambda *_: ended)
    guessed = guess(EXAMPLES / "coins/coins-yolo.onnx", "0" * 64, [PHOTO], Overrides())

    assert guessed.bound is not None
    assert not guessed.bound.fits


def test_an_image_beyond_the_measured_bound_is_refused_and_one_within_it_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STEP_LIMIT_VARIABLE, str(2**30))

    guessed = guess(EXAMPLES / "coins/coins-unet.onnx", "0" * 64, [PHOTO], Overrides())

    assert guessed.bound is not None
    most = guessed.spec["input"]["maxPixels"]
    assert 500_000 < most < 4_000_000
    model = InProcessModel(pipeline_of(guessed.spec), EXAMPLES / "coins/coins-unet.onnx")
    assert model.answer(PHOTO.read_bytes(), RequestOptions(encoding="raw"))["AREAS"].sum() == 384 * 303
    with Image.open(PHOTO) as photo:
        photo.resize((2000, most // 2000 + 1)).save(tmp_path / "large.png")
    with pytest.raises(BadImageError, match=rf"allowed are 1 to {most} \(input\.maxPixels\)"):
        model.answer((tmp_path / "large.png").read_bytes(), RequestOptions(encoding="raw"))


def test_a_letterboxed_network_keeps_the_default_because_that_was_measured() -> None:
    guessed = guess(EXAMPLES / "coins/coins-yolo.onnx", "0" * 64, [PHOTO], Overrides())

    assert guessed.bound is not None
    assert guessed.bound.pixels == DEFAULT_MAX_PIXELS
    assert "maxPixels" not in guessed.spec["input"]
    assert any("maxPixels is left at its default" in remark.text and remark.sure for remark in guessed.remarks)


def test_what_cannot_be_measured_keeps_the_default_and_is_marked(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    with Image.open(PHOTO) as photo:
        photo.save(broken)
    broken.write_bytes(broken.read_bytes()[:500])

    guessed = guess(EXAMPLES / "coins/coins-yolo.onnx", "0" * 64, [broken], Overrides())

    assert guessed.bound is None
    assert any("memory was not measured" in remark.text and not remark.sure for remark in guessed.remarks)


def test_a_trial_run_that_fails_for_another_reason_is_no_size_that_is_too_large() -> None:
    guessed = guess(EXAMPLES / "coins/coins-yolo.onnx", "0" * 64, [PHOTO], Overrides())
    spec = {**guessed.spec, "preprocess": [{"decode": {}}]}  # the network takes 384 x 384 only

    found = measure(pipeline_of(spec), EXAMPLES / "coins/coins-yolo.onnx", PHOTO, lambda _: None)

    assert (found.runs, found.too_large) == ((), None)
    assert found.error
