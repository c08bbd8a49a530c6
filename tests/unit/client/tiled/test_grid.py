"""Which tile sees and which owns each pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve import BadRequestError
from segserve.tiled.grid import Grid, Window


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    tile = draw(st.integers(64, 160))
    overlap = 2 * draw(st.integers(0, tile // 4))
    return Grid(draw(st.integers(1, 500)), draw(st.integers(1, 500)), tile, overlap)


@given(grids())
def test_every_pixel_is_owned_by_exactly_one_tile(grid: Grid) -> None:
    owners = np.zeros((grid.height, grid.width), int)

    for tile in grid:
        owners[tile.cell.slices()] += 1

    assert (owners == 1).all()


@given(grids())
def test_a_tile_sees_its_cell_and_a_margin_wherever_there_is_more_image(grid: Grid) -> None:
    margin = grid.overlap // 2
    for tile in grid:
        seen, own = tile.window, tile.cell
        assert seen.top <= max(own.top - margin, 0)
        assert seen.left <= max(own.left - margin, 0)
        assert seen.bottom >= min(own.bottom + margin, grid.height) if tile.row + 1 < grid.rows else True
        assert seen.right >= min(own.right + margin, grid.width) if tile.column + 1 < grid.columns else True
        assert seen.intersection(own) == own


@given(grids())
def test_no_tile_is_larger_than_asked_for_nor_much_smaller(grid: Grid) -> None:
    for tile in grid:
        for seen, size in ((tile.window.height, grid.height), (tile.window.width, grid.width)):
            assert min(grid.tile, size) - 31 <= seen <= grid.tile
        assert 0 <= tile.window.top < tile.window.bottom <= grid.height
        assert 0 <= tile.window.left < tile.window.right <= grid.width


@given(grids(), st.data())
def test_the_owners_of_a_window_are_the_tiles_whose_cells_meet_it(grid: Grid, data: st.DataObject) -> None:
    top = data.draw(st.integers(0, grid.height - 1))
    left = data.draw(st.integers(0, grid.width - 1))
    window = Window(
        top, left, data.draw(st.integers(top + 1, grid.height)), data.draw(st.integers(left + 1, grid.width))
    )

    owners = set(grid.owners(window))

    assert owners == {tile.index for tile in grid if not tile.cell.intersection(window).is_empty}


@given(grids())
def test_no_chunk_of_the_map_is_written_by_two_tiles(grid: Grid) -> None:
    writers: dict[tuple[int, int], set[int]] = {}
    for tile in grid:
        cell = tile.cell
        for row in range(cell.top // grid.core, -(-cell.bottom // grid.core)):
            for column in range(cell.left // grid.core, -(-cell.right // grid.core)):
                writers.setdefault((row, column), set()).add(tile.index)

    assert all(len(tiles) == 1 for tiles in writers.values())


def test_tiles_begin_in_the_phase_of_a_network_that_halves_its_input_five_times() -> None:
    grid = Grid(20_000, 20_000, 1024, 128)

    assert {(tile.window.top % 32, tile.window.left % 32) for tile in grid} == {(0, 0)}
    assert len(grid) == 23 * 23


@pytest.mark.parametrize(("tile", "overlap"), [(63, 0), (20_000, 0), (256, 129), (256, 130), (256, -2), (256, 7)])
def test_a_tile_that_cannot_be_is_refused(tile: int, overlap: int) -> None:
    with pytest.raises(BadRequestError, match=r"pixels|half the tile"):
        Grid(100, 100, tile, overlap)
