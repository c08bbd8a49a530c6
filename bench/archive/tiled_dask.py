"""A large image on a Dask cluster of two processes through the real gateway, with and without killing a worker.

    python -m bench.archive.tiled_dask

Writes bench/out/tiled_dask.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.platform import MODELS, ROOT, platform
from bench.tiled import scene

OUT = ROOT / "bench/out/tiled_dask.json"
MODEL = {"model": "coins", "tile": 512, "overlap": 128}


def digest(folder: Path) -> str:
    """Return one digest of all files in a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def run(url: str, image: Path, out: Path, *, kill: bool) -> dict[str, Any]:
    """Segment the image on a new cluster; with `kill`, SIGKILL one worker's process half-way."""
    import distributed

    from segserve import Client

    answered: list[float] = []
    killed: list[float] = []
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster) as workers,
        Client(url) as client,
    ):
        pids = list(workers.run(os.getpid).values())

        def watch(done: int, total: int) -> None:
            answered.append(time.perf_counter())
            if kill and not killed and done >= total // 2:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(time.perf_counter())

        start = time.perf_counter()
        result = client.segment_tiled(image, out=out, scheduler=workers, in_flight=4, progress=watch, **MODEL)
        seconds = time.perf_counter() - start
    after = [at - killed[0] for at in answered if killed and at > killed[0]]
    return {
        "tiles": result.tiles,
        "answered": result.sent,
        "seconds": round(seconds, 1),
        "killed_after_s": round(killed[0] - start, 1) if killed else None,
        "next_tile_after_s": round(after[0], 2) if after else None,
        "digest": digest(out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    side = parser.parse_args().side
    with platform(MODELS) as running, tempfile.TemporaryDirectory(prefix="segserve-bench-") as folder:
        image = scene(Path(folder) / "image.npy", side)
        figures = {
            "side": side,
            "whole": run(running.url, image, Path(folder) / "whole", kill=False),
            "worker_killed": run(running.url, image, Path(folder) / "killed", kill=True),
        }
    figures["equal"] = figures["whole"]["digest"] == figures["worker_killed"]["digest"]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
