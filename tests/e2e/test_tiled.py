"""Large images through the real gateway: stitched answers beside whole ones, a killed process, a killed worker."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.platform import MODELS, Running
from segserve import Client, InstanceResult
from segserve.tiled import TiledObjects

pytestmark = pytest.mark.platform

CALL = """
import sys
from segserve import Client
with Client(sys.argv[1]) as client:
    client.segment_tiled(sys.argv[2], model="coins", tile=256, overlap=128, out=sys.argv[3], in_flight=2,
                         progress=lambda done, total: print(done, total, flush=True))
"""


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """Twelve photographs of the coins side by side, grey (909, 1536): coins lie over every seam."""
    with Image.open(MODELS.parent / "coins.png") as photo:
        return np.tile(np.asarray(photo.convert("L")), (3, 4))


@pytest.fixture(scope="module")
def table_path(table: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiled") / "table.npy"
    np.save(path, table)
    return path


def files(folder: Path) -> dict[str, str]:
    """Return the digest of every file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_coin_over_a_seam_or_a_corner_is_one_coin_with_its_area(coins: Running, table: np.ndarray) -> None:
    height, width = table.shape[0] // 3, table.shape[1] // 4
    with Client(coins.url) as client:
        photo = client.segment(table[:height, :width], model="coins-instances")
        tiled = client.segment_tiled(table, model="coins-instances", tile=384, overlap=192, progress=False)

    assert isinstance(photo, InstanceResult)
    assert isinstance(tiled, TiledObjects)
    assert len(tiled) == 12 * len(photo)
    for row, column, coin in itertools.product(range(3), range(4), photo):
        x, y = (coin.box[0] + coin.box[2]) / 2 + column * width, (coin.box[1] + coin.box[3]) / 2 + row * height
        (found,) = (one for one in tiled if one.box[0] <= x <= one.box[2] and one.box[1] <= y <= one.box[3])
        assert abs(found.area - coin.area) < 0.05 * coin.area
    assert any(len(one.tiles) >= 4 for one in tiled)


def test_a_killed_run_is_taken_up_and_ends_as_one_that_was_not(
    coins: Running, table_path: Path, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CALL, coins.url, str(table_path), str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            done, total = map(int, line.split())
            if done >= total // 2:
                process.send_signal(signal.SIGKILL)
                break
    assert not (tmp_path / "killed" / "result.json").exists()
    options = {"model": "coins", "tile": 256, "overlap": 128, "progress": False}

    with Client(coins.url) as client:
        resumed = client.segment_tiled(table_path, out=tmp_path / "killed", **options)
        client.segment_tiled(table_path, out=tmp_path / "whole", **options)

    assert 0 < resumed.sent <= resumed.tiles - resumed.tiles // 2
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_dask_cluster_that_loses_a_worker_loses_no_tile(coins: Running, table_path: Path, tmp_path: Path) -> None:
    import distributed

    options = {"model": "coins", "tile": 256, "overlap": 128}
    half_way = threading.Event()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as workers,
        Client(coins.url) as client,
    ):
        pids = workers.run(os.getpid)

        def kill_one(done: int, total: int) -> None:
            if done >= total // 2 and not half_way.is_set():
                half_way.set()
                os.kill(next(iter(pids.values())), signal.SIGKILL)

        lost = client.segment_tiled(
            table_path, out=tmp_path / "lost", scheduler=workers, progress=kill_one, in_flight=4, **options
        )
        assert set(workers.run(os.getpid).values()) != set(pids.values())
        client.segment_tiled(table_path, out=tmp_path / "alone", progress=False, **options)

    assert half_way.is_set()
    assert lost.sent == lost.tiles
    assert files(tmp_path / "lost") == files(tmp_path / "alone")
