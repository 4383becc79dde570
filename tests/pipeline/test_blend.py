"""The weighted mean over windows against sums written out by hand, and its independence of the target."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.blend import Blender, PartBlender, axis_weights, check_grid
from pipeline.errors import SpecError
from pipeline.grid import Lattice
from pipeline.network.cells import Cells
from pipeline.network.resize import upsample
from pipeline.spec import GridSpec
from pipeline.window import Window


@st.composite
def lattices(draw, *, most_overlap=1.0):
    size = draw(st.integers(2, 20))
    overlap = draw(st.integers(0, min(size - 1, int(size * most_overlap))))
    shape = draw(st.tuples(st.integers(1, 45), st.integers(1, 45)))
    return Lattice(shape=shape, size_px=size, step_px=size - overlap)


blends = st.sampled_from(["taper", "exact"])


def probabilities_of(lattice, *, n_classes=3):
    """Return random probabilities per window, of very different sizes, so that another order of summation shows."""
    rng = np.random.default_rng(lattice.size_px * 1000 + lattice.shape[0])
    found = {}
    for index in lattice.touching(Window.of_shape(lattice.shape)):
        raw = rng.uniform(0, 1, (n_classes, lattice.size_px, lattice.size_px)) ** 6 + 1e-9
        found[index] = (raw / raw.sum(axis=0)).astype(np.float32)
    return found


def blended(target, lattice, blend, windows):
    blender = Blender(target, lattice, n_classes=3, blend=blend, cells=Cells())
    for index in lattice.touching(target):
        blender.add(index, np.log(windows[index]))
    return blender.blended().probabilities()


def weight_sum(lattice, blend, *, axis):
    count = (lattice.n_rows, lattice.n_cols)[axis]
    total = np.zeros(lattice.extent[axis])
    for index in range(count):
        start = index * lattice.step_px
        total[start : start + lattice.size_px] += axis_weights(lattice, index, n=count, blend=blend)
    return total


@given(lattices(most_overlap=0.5))
def test_taper_weights_of_neighbours_add_up_to_one_between_the_outer_windows(lattice):
    for axis in (0, 1):
        overlap = lattice.size_px - lattice.step_px
        inner = weight_sum(lattice, "taper", axis=axis)[overlap : lattice.extent[axis] - overlap]
        np.testing.assert_allclose(inner, 1, atol=1e-6)


@given(lattices())
def test_exact_takes_each_pixel_from_exactly_one_window(lattice):
    for axis in (0, 1):
        np.testing.assert_array_equal(weight_sum(lattice, "exact", axis=axis), 1)


@given(lattices(), blends)
def test_every_pixel_of_the_scene_has_a_weight_above_0(lattice, blend):
    assert weight_sum(lattice, blend, axis=0).min() > 0


def test_taper_weights_are_those_one_writes_down_by_hand():
    lattice = Lattice(shape=(20, 20), size_px=8, step_px=4)
    expected = [0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125]
    np.testing.assert_array_equal(axis_weights(lattice, 1, n=4, blend="taper"), expected)


def test_exact_cuts_in_the_middle_of_an_odd_overlap_too():
    lattice = Lattice(shape=(20, 20), size_px=8, step_px=5)
    cuts = [axis_weights(lattice, index, n=4, blend="exact").astype(int).tolist() for index in range(4)]
    assert cuts == [[1, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1]]


@given(lattices(), blends)
def test_equal_windows_blend_to_themselves(lattice, blend):
    target = Window.of_shape(lattice.shape)
    constant = np.array([0.7, 0.2, 0.1], np.float32)
    windows = dict.fromkeys(lattice.touching(target), np.tile(constant[:, None, None], (1, lattice.size_px, lattice.size_px)))
    result = blended(target, lattice, blend, windows)
    np.testing.assert_allclose(result, np.broadcast_to(constant[:, None, None], result.shape), atol=1e-6)


@given(lattices(), blends)
def test_the_result_is_the_weighted_mean_of_the_windows(lattice, blend):
    target, windows = Window.of_shape(lattice.shape), probabilities_of(lattice)
    top, bottom = np.zeros((3, *lattice.extent)), np.zeros(lattice.extent)
    overlap = lattice.size_px - lattice.step_px
    for (row, col), values in windows.items():
        weight = np.ones((lattice.size_px, lattice.size_px))
        for i in range(lattice.size_px):
            for j in range(lattice.size_px):
                for position, index, count in ((i, row, lattice.n_rows), (j, col, lattice.n_cols)):
                    distance = min(position + 0.5, lattice.size_px - position - 0.5)
                    if blend == "taper":
                        weight[i, j] *= min(1.0, distance / overlap) if overlap else 1.0
                    else:
                        owner = min(max(position + index * lattice.step_px - overlap // 2, 0) // lattice.step_px, count - 1)
                        weight[i, j] *= owner == index
        place = (slice(row * lattice.step_px, row * lattice.step_px + lattice.size_px),)
        place += (slice(col * lattice.step_px, col * lattice.step_px + lattice.size_px),)
        top[:, *place] += values * weight
        bottom[place] += weight
    expected = (top / bottom)[:, : lattice.shape[0], : lattice.shape[1]]
    result = blended(target, lattice, blend, windows)
    np.testing.assert_allclose(result, expected, atol=2e-6)
    np.testing.assert_allclose(result.sum(axis=0), 1, atol=1e-5)


@settings(max_examples=200)
@given(lattices(), blends, st.data())
def test_a_part_of_the_scene_gets_the_bytes_that_the_whole_scene_gets(lattice, blend, data):
    windows = probabilities_of(lattice)
    whole = blended(Window.of_shape(lattice.shape), lattice, blend, windows)
    row = data.draw(st.integers(0, lattice.shape[0] - 1))
    col = data.draw(st.integers(0, lattice.shape[1] - 1))
    part = Window.from_bounds(
        rows=(row, data.draw(st.integers(row + 1, lattice.shape[0]))),
        cols=(col, data.draw(st.integers(col + 1, lattice.shape[1]))),
    )
    assert blended(part, lattice, blend, windows).tobytes() == whole[:, *part.to_slices()].tobytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_blended_when_asked_for_have_the_bytes_of_all_blended_at_once(threads):
    cells = Cells(factor=4)
    lattice, target = Lattice(shape=(500, 300), size_px=160, step_px=128), Window.from_bounds(rows=(37, 461), cols=(11, 290))
    rng, more = np.random.default_rng(0), {"n_classes": 3, "blend": "taper", "cells": cells}
    blender, later = Blender(target, lattice, **more), PartBlender(target, lattice, **more, threads=threads)
    for index in lattice.touching(target):
        scores = rng.normal(0, 3, (3, 40, 40)).astype(np.float32)
        blender.add(index, scores)
        later.add(index, scores)
    whole, parts = blender.blended(), later.blended()
    assert parts.probabilities().tobytes() == whole.probabilities().tobytes()
    valid = rng.random(target.shape) < 0.9
    for part in [np.s_[:, :], np.s_[3:7, 5:250], np.s_[100:, :9], np.s_[250:424, 200:]]:
        assert parts.probabilities(part).tobytes() == whole.probabilities(part).tobytes()
        assert parts.quantise(part, valid[part]).tobytes() == whole.quantise(part, valid[part]).tobytes()
        for one, other in zip(parts.classify(part, valid[part]), whole.classify(part, valid[part]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_window_beside_the_target_changes_nothing():
    lattice = Lattice(shape=(8, 40), size_px=8, step_px=6)
    blender = Blender(Window(row_off=0, col_off=0, height=8, width=6), lattice, n_classes=2, blend="taper", cells=Cells())
    blender.add((0, 3), np.ones((2, 8, 8), np.float32))
    assert not blender.blended().probabilities().any()


@pytest.mark.parametrize("blend", ["taper", "exact"])
def test_pixels_without_a_window_are_0_and_those_that_lack_one_have_less_than_1(blend):
    lattice = Lattice(shape=(8, 14), size_px=8, step_px=6)
    blender = Blender(Window.of_shape((8, 14)), lattice, n_classes=2, blend=blend, cells=Cells())
    blender.add((0, 0), np.zeros((2, 8, 8), np.float32))
    result = blender.blended().probabilities()
    np.testing.assert_array_equal(result[:, :, 7], 0.125 if blend == "taper" else 0)
    np.testing.assert_array_equal(result[:, :, :6], 0.5)
    np.testing.assert_array_equal(result[:, :, 8:], 0)


@pytest.mark.parametrize(
    ("alignment", "factor", "n_cells"), [("centre", 4, 9), ("centre", 1, 20), ("corner", 8, 4), ("centre", 16, 1)]
)
@pytest.mark.parametrize("n_classes", [1, 3, 9, 21])
def test_scores_are_enlarged_as_the_network_would_and_made_probabilities(alignment, factor, n_cells, n_classes):
    cells = Cells(factor=factor, alignment=alignment)
    scores = np.random.default_rng(n_classes).normal(0, 5, (n_classes, n_cells, n_cells)).astype(np.float32)
    enlarged = upsample(torch.from_numpy(scores)[None].double(), factor, alignment)
    side = enlarged.shape[-1]
    lattice = Lattice(shape=(side, side), size_px=side, step_px=side)
    blender = Blender(Window.of_shape((side, side)), lattice, n_classes=n_classes, blend="taper", cells=cells)
    blender.add((0, 0), scores)
    assert cells.n_covering(side) == n_cells
    np.testing.assert_allclose(blender.blended().probabilities(), torch.softmax(enlarged, dim=1)[0].numpy(), rtol=0, atol=2e-6)


def test_scores_far_apart_do_not_overflow():
    lattice = Lattice(shape=(3, 3), size_px=3, step_px=3)
    blender = Blender(Window.of_shape((3, 3)), lattice, n_classes=2, blend="taper", cells=Cells())
    blender.add((0, 0), np.stack([np.full((3, 3), 3e4), np.full((3, 3), -3e4)]).astype(np.float32))
    np.testing.assert_array_equal(blender.blended().probabilities()[0], 1)


# --- what the network can run on


@pytest.mark.parametrize(
    ("window", "overlap", "stride"),
    [pytest.param(72, 16, 16, id="window"), pytest.param(64, 24, 16, id="overlap"), pytest.param(68, 20, 8, id="stride 8")],
)
def test_windows_off_the_output_stride_are_refused(window, overlap, stride):
    grid = GridSpec(window_px=window, overlap_px=overlap)
    with pytest.raises(SpecError, match=f"{window} px with an overlap of {overlap} px.*multiples of {stride}"):
        check_grid(grid, output_stride=stride, margin_px=32)


def test_with_aligned_corners_a_window_may_end_on_its_last_cell():
    check_grid(GridSpec(window_px=513, overlap_px=65), output_stride=16, margin_px=None, alignment="corner")
    check_grid(GridSpec(window_px=512, overlap_px=64), output_stride=16, margin_px=None, alignment="corner")
    for window, overlap, alignment in ((513, 65, "centre"), (513, 64, "corner"), (514, 66, "corner")):
        with pytest.raises(SpecError, match="must be multiples of 16"):
            check_grid(GridSpec(window_px=window, overlap_px=overlap), output_stride=16, margin_px=None, alignment=alignment)


@pytest.mark.parametrize("margin", [None, 4000])
def test_taper_runs_with_any_margin(margin):
    check_grid(GridSpec(window_px=64, overlap_px=16), output_stride=16, margin_px=margin)


def test_exact_is_refused_with_image_pooling():
    with pytest.raises(SpecError, match=r"image-level pooling.*--blend taper"):
        check_grid(GridSpec(window_px=64, overlap_px=32, blend="exact"), output_stride=16, margin_px=None)


def test_exact_needs_twice_the_margin_and_says_what_to_type():
    with pytest.raises(SpecError, match=r"sees 320 px.*--overlap 640.*for example 1280"):
        check_grid(GridSpec(window_px=1024, overlap_px=624, blend="exact"), output_stride=16, margin_px=320)
    check_grid(GridSpec(window_px=1024, overlap_px=640, blend="exact"), output_stride=16, margin_px=320)
    check_grid(GridSpec(window_px=1280, overlap_px=640, blend="exact"), output_stride=16, margin_px=320)
