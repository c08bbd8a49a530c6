"""A model in each layout of a server: one step, three Python steps, or three with Triton's own backend for the network.

    SEGSERVE_TRITON=folder python -m bench.layouts photo.jpg model.yaml... [--seconds 240]

Each layout is what `segserve build` writes, on a Triton of its own (the folder has `backends/onnxruntime`), and all get
the same photograph in turns. Adds to bench/out/layouts.json: images a second by model, callers and layout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import yaml
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from bench.closed_loop import measure
from bench.monolith_server import embedded_triton
from bench.request import image_call, same_masks
from bench.smoke import output, sized

CALLERS: Final = (1, 8, 32)
TURN_S: Final = sized(1.5, 0.1)
BY_TRITON: Final = "Triton's ONNX Runtime"
CPUS: Final = ("--cpus", str(os.cpu_count()))
LAYOUTS: Final = {
    "one step": CPUS,
    "three steps": (),
    # A server without a GPU runs on its CPU what is built for one that may have any.
    BY_TRITON: (*CPUS, "--backend", "onnxruntime", "--device", "gpu"),
}


def built(file: Path, stack: ExitStack) -> dict[str, Path]:
    """Return a repository of all models of a file by layout; they last as long as `stack`."""
    folders = {layout: Path(stack.enter_context(tempfile.TemporaryDirectory())) for layout in LAYOUTS}
    build = (sys.executable, "-m", "segserve_platform.cli", "build", "-f", file)
    for layout, arguments in LAYOUTS.items():
        subprocess.run([*build, "-o", folders[layout], *arguments], check=True, stdout=subprocess.DEVNULL)
    return folders


def backends(folder: Path, model: str) -> set[str]:
    """Return the backends of a model's steps."""
    ensemble = text_format.Parse((folder / model / "config.pbtxt").read_text(), ModelConfig())
    steps = (folder / step.model_name / "config.pbtxt" for step in ensemble.ensemble_scheduling.step)
    return {text_format.Parse(path.read_text(), ModelConfig()).backend for path in steps}


def measured(folders: Mapping[str, Path], model: str, photo: bytes, seconds: float) -> dict[str, Any]:
    """Return images a second of one model by callers and layout; exits if layouts do not answer the same."""
    with ExitStack() as stack:
        targets = {}
        for layout, folder in folders.items():
            if layout == BY_TRITON and "onnxruntime" not in backends(folder, model):
                print(f"{model}: not {layout}, since it needs the Python step")
                continue
            server = stack.enter_context(embedded_triton(folder, model))
            targets[layout] = image_call(server.grpc, model, photo)
        masks = same_masks(targets)
        print(f"{model}: {len(masks)} masks, the same of all layouts")
        found = {}
        for callers in CALLERS:
            warm = measure(targets, concurrency=callers, rounds=1, calls=2 * callers)
            calls = max(callers, round(TURN_S * min(each.per_second for each in warm.values())) // callers * callers)
            rounds = round(seconds / len(CALLERS) / len(targets) / TURN_S)
            at = measure(targets, concurrency=callers, rounds=rounds, calls=calls)
            found[str(callers)] = {layout: round(each.per_second, 1) for layout, each in at.items()}
            print(f"  {callers:2} callers: {found[str(callers)]}", flush=True)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=sized(240, 1), help="of each model")
    arguments = parser.parse_args()
    out = output("bench/out/layouts.json")
    results = json.loads(out.read_text()) if out.exists() else {"cores": os.cpu_count(), "images/s": {}}
    for file in arguments.files:
        with ExitStack() as stack:
            folders = built(file, stack)
            for resource in yaml.safe_load_all(file.read_text()):
                if resource and resource["kind"] == "SegmentationModel":
                    name = resource["metadata"]["name"]
                    found = measured(folders, name, arguments.photo.read_bytes(), arguments.seconds)
                    results["images/s"][name] = {"photo": arguments.photo.name} | found
    out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
