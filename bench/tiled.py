"""A large image through the real gateway: memory, speed, and agreement of the stitched result with that of one request.

    python -m bench.tiled                       # 20,000 x 20,000 RGB, `coins`, and the agreement on 2,048 x 2,048
    python -m bench.tiled --side 6000 --model coins-instances --tile 384

Memory is the peak resident memory of the client process, as reported by the kernel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.platform import MODELS, ROOT, Running, platform
from bench.smoke import output, sized

PHOTO = MODELS.parent / "coins.png"
OUT = output("bench/out/tiled.json")


def scene(path: Path, side: int) -> Path:
    """Write an RGB image of randomly flipped and lit coins as a .npy file, for reading in windows; return its path."""
    photo = np.asarray(Image.open(PHOTO).convert("RGB"))[:288]
    random = np.random.default_rng(0)
    image = np.lib.format.open_memmap(path, "w+", np.uint8, (side, side, 3))
    for top in range(0, side, photo.shape[0]):
        for left in range(0, side, photo.shape[1]):
            turned = photo[:: random.choice((-1, 1)), :: random.choice((-1, 1))]
            lit = (turned * random.uniform(0.85, 1.0)).astype(np.uint8)
            height, width = min(288, side - top), min(384, side - left)
            image[top : top + height, left : left + width] = lit[:height, :width]
    image.flush()
    return path


def peak_mib() -> float:
    """Return the peak resident memory of this process in MiB; that of getrusage includes its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, 1)


def child(arguments: argparse.Namespace) -> None:
    """Segment one image and print the figures; run as a separate process to measure its memory."""
    from segserve import Client

    before_mib = peak_mib()
    start = time.perf_counter()
    with Client(arguments.url, timeout_s=300) as client:
        result = client.segment_tiled(
            arguments.image,
            model=arguments.model,
            tile=arguments.tile,
            overlap=arguments.overlap,
            out=arguments.out,
            in_flight=arguments.in_flight,
            progress=lambda done, total: (
                print(f"{done}/{total}", file=sys.stderr, flush=True) if done % 25 == 0 else None
            ),
        )
    seconds = time.perf_counter() - start
    pixels = result.size[0] * result.size[1]
    figures = {
        "model": arguments.model,
        "size": list(result.size),
        "tile": arguments.tile,
        "overlap": arguments.overlap,
        "in_flight": arguments.in_flight,
        "tiles": result.tiles,
        "seconds": round(seconds, 1),
        "tiles_per_s": round(result.tiles / seconds, 2),
        "mpix_per_s": round(pixels / seconds / 1e6, 2),
        "peak_rss_mib": peak_mib(),
        "rss_before_mib": before_mib,
        "areas": dict(result.areas),
        "objects": len(result) if hasattr(result, "__len__") else None,
    }
    print(json.dumps(figures))


def measured(arguments: argparse.Namespace, running: Running, folder: Path) -> dict[str, Any]:
    """Run the child on a large image, and return its figures."""
    image = scene(folder / "image.npy", arguments.side)
    command = [
        *(sys.executable, "-m", "bench.tiled", "--child", "--url", running.url, "--image", str(image)),
        *("--model", arguments.model, "--out", str(folder / "out"), "--in-flight", str(arguments.in_flight)),
        *("--tile", str(arguments.tile), "--overlap", str(arguments.overlap)),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def agreement(arguments: argparse.Namespace, running: Running, folder: Path) -> dict[str, Any]:
    """Return how many pixels of the stitched result differ from the result of one request for the whole image."""
    from segserve import Client, SemanticResult
    from segserve.tiled import TiledSemanticResult

    image = np.load(scene(folder / "small.npy", arguments.agreement_side), mmap_mode="r")
    different = {}
    with Client(running.url, timeout_s=300) as client:
        whole = client.segment(np.array(image), model=arguments.model)
        assert isinstance(whole, SemanticResult)
        for overlap in (0, 32, 64, 128):
            tiled = client.segment_tiled(image, model=arguments.model, tile=512, overlap=overlap, progress=False)
            assert isinstance(tiled, TiledSemanticResult)
            different[str(overlap)] = int((tiled.labels != whole.labels).sum())
    return {"side": arguments.agreement_side, "tile": 512, "pixels_that_differ_by_overlap": different}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=sized(20_000, 2048))
    parser.add_argument("--agreement-side", type=int, default=sized(2048, 1024))
    parser.add_argument("--model", default="coins")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--in-flight", type=int, default=4)
    for hidden in ("--url", "--image", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    with platform(MODELS) as running, tempfile.TemporaryDirectory(prefix="segserve-bench-") as folder:
        figures = {}
        if arguments.model == "coins":
            figures["agreement"] = agreement(arguments, running, Path(folder))
            print(json.dumps(figures, indent=2), flush=True)
        figures["large"] = measured(arguments, running, Path(folder))
        figures["platform_memory_mib"] = running.memory_by_kind_mib()
    print(json.dumps(figures, indent=2))
    OUT.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
