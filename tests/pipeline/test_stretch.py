"""Stretches against numpy's percentiles."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.errors import SpecError
from pipeline.scene import SceneSpec, open_scene
from pipeline.stretch import Stretch, estimate_stretch, sample_windows
from pipeline.window import Window

RASTERS = Path(__file__).parents[2].parent / "shared" / "data" / "rasters"


@pytest.fixture
def scene_of(tmp_path):
    def build(pixels, *, bands=None, nodata=None):
        path = tmp_path / "a.zarr"
        zarr.create_array(str(path), data=np.asarray(pixels), dimension_names=("band", "y", "x"), overwrite=True)
        return open_scene(SceneSpec(uri=str(path), bands=bands, nodata=nodata))

    return build


def noise(dtype, shape=(2, 101, 203)):
    return np.random.default_rng(5).integers(0, 3000, shape).astype(dtype)


def test_the_identity_is_exact():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, axis=0)
    stretched = Stretch.identity(3).apply(pixels)
    assert stretched.dtype == np.float32
    np.testing.assert_array_equal(stretched, pixels.astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_the_ends_become_0_and_255_and_the_rest_lies_on_a_line(dtype):
    pixels = np.array([[[50, 100, 150, 200, 250]], [[0, 10, 20, 30, 40]]], dtype=dtype)
    stretched = Stretch(low=(100, 10), high=(200, 30)).apply(pixels)
    np.testing.assert_allclose(stretched, [[[0, 0, 127.5, 255, 255]], [[0, 0, 127.5, 255, 255]]])
    assert stretched.dtype == np.float32


def test_large_integers_keep_their_differences():
    pixels = np.array([[[2_000_000_000, 2_000_000_001]]], dtype=np.int32)
    assert Stretch(low=(2e9,), high=(2e9 + 1,)).apply(pixels).tolist() == [[[0.0, 255.0]]]


def test_what_is_no_number_becomes_0():
    pixels = np.array([[[np.nan, np.inf, -np.inf, 1.0]]], dtype=np.float32)
    assert Stretch(low=(0.0,), high=(2.0,)).apply(pixels).tolist() == [[[0.0, 255.0, 0.0, 127.5]]]


def test_the_source_is_left_alone():
    pixels = noise("float32")
    before = pixels.copy()
    Stretch(low=(5.0, 5.0), high=(9.0, 9.0)).apply(pixels)
    np.testing.assert_array_equal(pixels, before)


def test_a_stretch_survives_json_and_pickle():
    stretch = Stretch(low=(0.1, -5.0), high=(0.3, 1e9))
    assert Stretch.from_dict(json.loads(json.dumps(stretch.to_dict()))) == stretch
    assert pickle.loads(pickle.dumps(stretch)) == stretch


@pytest.mark.parametrize(
    ("low", "high"),
    [((), ()), ((1.0,), (1.0, 2.0)), ((2.0,), (1.0,)), ((np.nan,), (1.0,)), ((0.0,), (np.inf,))],
    ids=["empty", "lengths", "falling", "NaN", "infinite"],
)
def test_a_stretch_that_makes_no_sense_is_refused(low, high):
    with pytest.raises(SpecError):
        Stretch(low=low, high=high)


def test_another_number_of_bands_is_refused():
    with pytest.raises(SpecError, match="estimate it for the same bands"):
        Stretch.identity(3).apply(np.zeros((2, 5, 7), dtype=np.uint8))


# --- estimates


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_scene_smaller_than_a_window_gives_its_own_percentiles(scene_of, dtype):
    pixels = noise(dtype)
    stretch = estimate_stretch(scene_of(pixels))
    assert stretch.low == pytest.approx(np.percentile(pixels, 2, axis=(1, 2)))
    assert stretch.high == pytest.approx(np.percentile(pixels, 98, axis=(1, 2)))


def test_the_samples_stand_for_the_scene(scene_of):
    pixels = noise("uint16", (1, 1000, 700)) + np.arange(1000, dtype=np.uint16)[:, None]
    stretch = estimate_stretch(scene_of(pixels), n_windows=16, window_px=32)
    assert stretch.low[0] == pytest.approx(np.percentile(pixels, 2), abs=60)
    assert stretch.high[0] == pytest.approx(np.percentile(pixels, 98), abs=60)


def test_bands_follow_the_selection(scene_of):
    pixels = noise("uint16") + np.array([0, 10_000], dtype=np.uint16)[:, None, None]
    stretch = estimate_stretch(scene_of(pixels, bands=(2, 1)))
    assert stretch.low[0] > 10_000 > stretch.high[1]


def test_uint8_is_left_as_it_is(scene_of):
    assert estimate_stretch(scene_of(noise("uint8"))) == Stretch.identity(2)


def test_nodata_and_what_is_no_number_do_not_count(scene_of):
    pixels = noise("float32") + 1
    pixels[:, :50] = 0
    pixels[0, 60:70] = np.nan
    pixels[1, 60:70] = np.inf
    stretch = estimate_stretch(scene_of(pixels, nodata=0))
    kept = np.concatenate([pixels[0, 50:60], pixels[0, 70:]])
    assert stretch.low[0] == pytest.approx(np.percentile(kept, 2))
    assert stretch.high[1] < 3001


def test_a_constant_band_becomes_0_and_no_division_fails(scene_of):
    pixels = np.full((1, 33, 47), 1e30, dtype=np.float32)
    assert not estimate_stretch(scene_of(pixels)).apply(pixels).any()


def test_a_scene_without_data_gives_the_identity(scene_of):
    assert estimate_stretch(scene_of(np.zeros((2, 33, 47), np.uint16), nodata=0)) == Stretch.identity(2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (101, 203), (3000, 700)])
@pytest.mark.parametrize("n_windows", [1, 3, 64])
def test_sample_windows_are_few_and_inside(shape, n_windows):
    windows = sample_windows(shape, n_windows=n_windows, side_px=256)
    assert 1 <= len(windows) <= n_windows
    assert all(Window.of_shape(shape).contains(window) for window in windows)


@pytest.mark.parametrize(
    "settings",
    [{"percentiles": (98, 2)}, {"percentiles": (-1, 50)}, {"n_windows": 0}, {"window_px": 0}],
    ids=str,
)
def test_settings_out_of_range_are_refused(scene_of, settings):
    with pytest.raises(SpecError, match="percentiles"):
        estimate_stretch(scene_of(noise("uint16")), **settings)


@pytest.mark.shared
@pytest.mark.skipif(not RASTERS.is_dir(), reason="the shared data is not here")
def test_a_landsat_scene_fills_the_range():
    with open_scene(SceneSpec(uri=str(RASTERS / "landsat8_uint16.tif"))) as scene:
        stretch = estimate_stretch(scene)
        stretched = stretch.apply(scene.read(scene.info.window).pixels)
        assert stretch == estimate_stretch(scene)
    # Its corners are 0 and not tagged as nodata, so that only the upper end tells.
    assert np.all((stretched == 255).mean(axis=(1, 2)) < 0.06)
    assert np.all(stretched.std(axis=(1, 2)) > 25)
