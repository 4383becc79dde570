"""Decimation against loops over the cells."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.decimate import cell_windows, decimate_window, decimated_size, majority, mean

SHAPES = [
    pytest.param((101, 203), id="ragged"),
    pytest.param((1, 7), id="one row"),
    pytest.param((8, 8), id="whole"),
]


def cells(array: np.ndarray, factor: int):
    for row in range(0, array.shape[-2], factor):
        for col in range(0, array.shape[-1], factor):
            yield (row // factor, col // factor), array[..., row : row + factor, col : col + factor]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1, 2, 3, 8, 300])
def test_the_majority_of_each_cell_is_its_most_frequent_label_and_the_lowest_on_a_tie(shape, factor):
    labels = np.random.default_rng(1).choice(np.array([0, 3, 4, 254, 255], np.uint8), shape)
    result = majority(labels, factor)
    assert result.dtype == np.uint8
    assert result.shape == (decimated_size(shape[0], factor), decimated_size(shape[1], factor))
    for position, cell in cells(labels, factor):
        assert result[position] == np.bincount(cell.reshape(-1)).argmax()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1, 2, 3, 8, 300])
def test_the_mean_of_each_cell_leaves_out_what_is_not_valid(shape, factor):
    rng = np.random.default_rng(2)
    pixels = rng.uniform(0, 255, (2, *shape)).astype(np.float32)
    valid = rng.random(shape) < 0.3
    pixels[:, ~valid] = np.nan
    result, seen = mean(pixels, valid, factor)
    for position, cell in cells(pixels, factor):
        good = cell[:, ~np.isnan(cell[0])]
        assert seen[position] == (good.size > 0)
        if good.size:
            np.testing.assert_allclose(result[(slice(None), *position)], good.mean(axis=1), rtol=1e-4)


@pytest.mark.parametrize("factor", [1, 3, 64, 500])
def test_windows_are_whole_cells_that_cover_the_scene_once(factor):
    shape = 1001, 703
    seen = np.zeros(shape, int)
    cells_seen = np.zeros((decimated_size(shape[0], factor), decimated_size(shape[1], factor)), int)
    for window in cell_windows(shape, factor, target_px=256):
        assert window.row_off % factor == 0
        assert window.col_off % factor == 0
        assert max(window.shape) <= max(256, factor)
        seen[window.to_slices()] += 1
        cells_seen[decimate_window(window, factor).to_slices()] += 1
    assert (seen == 1).all()
    assert (cells_seen == 1).all()
