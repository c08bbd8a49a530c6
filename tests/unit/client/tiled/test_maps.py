"""Maps that many processes write, of which one may be killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segserve.tiled.grid import Window
from segserve.tiled.maps import MapFile


def test_what_a_killed_process_left_is_removed_and_the_map_stays(tmp_path: Path) -> None:
    file, cell = MapFile(str(tmp_path / "labels.zarr"), 4, 4, "uint8", 4), Window(0, 0, 4, 4)
    file.create({}).write(cell, np.full((4, 4), 7, np.uint8))
    whole = sorted(tmp_path.rglob("*"))
    (tmp_path / "labels.zarr/c/0/0.d47a0416.partial").write_bytes(b"")

    file.sweep()

    assert sorted(tmp_path.rglob("*")) == whole
    np.testing.assert_array_equal(file.open().read(cell), np.full((4, 4), 7))
