"""Cost of the compiled kernels: once at installation, and in the process of each step when it starts.

    python -m bench.cold_start

Writes bench/out/cold_start.json. The kernels are compiled from scratch into a separate folder. Each case is a new
process that imports what every step imports and processes two requests. The time of the first minus that of the second
is the cost of its kernels, including the import of numba. The result is the minimum of several runs.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

import segserve_builder
from bench.platform import ROOT
from bench.smoke import output, sized

RUNS: Final = sized(7, 1)
SIZE: Final = 512
CLASSES: Final = 21
CASES: Final[dict[str, dict[str, Any]]] = {
    "semantic: argmax, RLE": {"family": "semantic-logits", "encoding": "rle", "stages": []},
    "instance: YOLO-seg, RLE": {"family": "yolo-seg", "encoding": "rle", "stages": []},
    "instance: YOLO-seg, polygons": {"family": "yolo-seg", "encoding": "polygons", "stages": []},
    "semantic: CRF, argmax, small regions, RLE": {
        "family": "semantic-logits",
        "encoding": "rle",
        "stages": [{"crf": {"iterations": 1}}, {"argmax": {}}, {"removeSmallRegions": {"minArea": 50}}],
    },
    "every kernel": {},
}
COMPILED: Final = sized((), ("rle",))
"""Modules of kernels; all of them if none is named."""


def answer(case: str) -> dict[str, float]:
    """Do the work of a step's first two requests in this process, and return the seconds of each."""
    act = _load_all if not CASES[case] else _postprocess(CASES[case])
    times = {}
    for which in ("first", "second"):
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        act()
        times |= {f"{which}_cpu_s": time.process_time() - cpu_s, f"{which}_wall_s": time.perf_counter() - wall_s}
    return times


def _load_all() -> None:
    from segserve_builder.kernels import build, cache
    from segserve_builder.kernels.sources import module_imports

    for name in module_imports(cache.FOLDER):
        build.compile_module(name)


def _postprocess(case: dict[str, Any]) -> Callable[[], object]:
    import numpy as np

    from segserve_builder.families.base import NetworkIO, TensorSpec
    from segserve_builder.stages.base import RequestOptions
    from segserve_builder.steps.pipeline import Pipeline
    from segserve_builder.steps.postprocess import Postprocess
    from segserve_builder.values import ResizeTransform

    pipeline = Pipeline.model_validate(
        {
            "model": "m",
            "artifactSha256": "0" * 64,
            "family": case["family"],
            "input": {},
            "classes": [{"id": i, "name": str(i)} for i in range(CLASSES)],
            "preprocess": [],
            "postprocess": case["stages"],
            "output": {"encoding": case["encoding"]},
            "runtime": {},
        }
    )
    random = np.random.default_rng(0)
    transform = ResizeTransform.of(SIZE, SIZE)
    raw = _logits(random) if case["family"] == "semantic-logits" else _heads(random)
    tensors = tuple(TensorSpec(name, "FP32", (None, *array.shape[1:])) for name, array in raw.items())
    image = TensorSpec("image", "FP32", (None, 3, SIZE, SIZE))
    post = Postprocess(pipeline, NetworkIO(image, "NCHW", tensors))
    outputs = frozenset({"SIZE", "MASKS"})
    guide = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8) if pipeline.needs_guide else None
    return lambda: post(raw, transform, RequestOptions(), outputs, guide)


def _logits(random: Any) -> dict[str, Any]:
    return {"logits": random.normal(size=(1, CLASSES, SIZE // 4, SIZE // 4)).astype("float32")}


def _heads(random: Any) -> dict[str, Any]:
    """Return a head of 1,000 rows of which 100 are probable detections, and the prototypes of their masks."""
    head = random.uniform(0, 0.1, (1, 4 + CLASSES + 32, 1000)).astype("float32")
    head[0, :2] = random.uniform(100, SIZE - 100, (2, 1000))
    head[0, 2:4] = random.uniform(40, 160, (2, 1000))
    head[0, 4, :100] = 0.9
    head[0, 4 + CLASSES :] = random.normal(size=(32, 1000))
    return {"head": head, "prototypes": random.normal(size=(1, 32, SIZE // 4, SIZE // 4)).astype("float32")}


def main() -> None:
    """Compile the kernels, measure every case, and print the table."""
    with tempfile.TemporaryDirectory() as name:
        code = Path(name)
        package = Path(segserve_builder.__file__).parent
        shutil.copytree(package, code / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        compiling = _compile(code)
        cases = {case: _least(code, case) for case in sized(list(CASES), list(CASES)[:1])}
    result = {"compile": compiling, "cases": cases}
    output("bench/out/cold_start.json").write_text(json.dumps(result, indent=2) + "\n")
    table = Table("a new process", "first answer (s)", "second answer (s)", "kernels, wall (s)", "kernels, CPU (s)")
    for case, times in cases.items():
        columns = [times["first_wall_s"], times["second_wall_s"], times["kernels_wall_s"], times["kernels_cpu_s"]]
        table.add_row(case, *(f"{value:.2f}" for value in columns))
    Console().print(table)
    Console().print(f"compiling everything: {compiling['wall_s']} s on {compiling['processors']} processors, ", end="")
    Console().print(f"{compiling['cpu_s']} s of CPU, {compiling['megabytes']} MB")


def _environment(code: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(code), "PATH": os.defpath, "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _compile(code: Path) -> dict[str, float]:
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "segserve_builder.kernels", *COMPILED]
    subprocess.run(command, env=_environment(code), check=True)
    wall_s, after = time.perf_counter() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = sum(path.stat().st_size for path in code.rglob("*.nb[ci]"))
    processors = os.cpu_count() or 1
    return {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "processors": processors,
        "megabytes": round(size / 1e6, 1),
    }


def _least(code: Path, case: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.cold_start", case]
    runs = []
    for _ in range(RUNS):
        done = subprocess.run(command, env=_environment(code), cwd=ROOT, stdout=subprocess.PIPE, check=True)
        runs.append(json.loads(done.stdout))
    least = {key: min(run[key] for run in runs) for key in runs[0]}
    for clock in ("wall", "cpu"):
        least[f"kernels_{clock}_s"] = least[f"first_{clock}_s"] - least[f"second_{clock}_s"]
    return {key: round(value, 3) for key, value in least.items()}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(answer(sys.argv[1])))
    else:
        main()
