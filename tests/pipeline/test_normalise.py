"""Normalised windows against the formula, pixel by pixel."""

import dataclasses

import numpy as np
import pytest

from pipeline.network.spec import ClassSpec, ModelSpec, NetworkSpec
from pipeline.normalise import normalise
from pipeline.scene import Tile
from pipeline.stretch import Stretch
from pipeline.window import Window

MODEL = ModelSpec(
    name="two bands",
    network=NetworkSpec(n_classes=1, n_bands=2),
    classes=(ClassSpec(name="all", color="#ffffff"),),
    bands=("near infrared", "red"),
    mean=(100.0, 30.0),
    std=(50.0, 4.0),
)
OUTER = Window(row_off=-8, col_off=20, height=30, width=41)
INNER = Window(row_off=-3, col_off=27, height=11, width=17)


def tile_of(*, dtype="uint8", high=256):
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, high, (2, *OUTER.shape)).astype(dtype)
    return Tile(window=OUTER, pixels=pixels, valid=rng.uniform(size=OUTER.shape) < 0.8)


def test_each_valid_pixel_is_stretched_centred_and_scaled_and_the_others_are_the_mean():
    tile, stretch = tile_of(dtype="uint16", high=5000), Stretch(low=(200.0, 1000.0), high=(4000.0, 3000.0))
    found = normalise(tile, INNER, stretch=stretch, model=MODEL)
    assert found.dtype == np.float32
    assert found.shape == (2, *INNER.shape)
    for band in range(2):
        for row in range(INNER.height):
            for col in range(INNER.width):
                # the inner window starts 5 rows and 7 columns into the tile
                value = float(tile.pixels[band, row + 5, col + 7])
                units = 255 * (value - stretch.low[band]) / (stretch.high[band] - stretch.low[band])
                expected = (min(max(units, 0), 255) - MODEL.mean[band]) / MODEL.std[band]
                if not tile.valid[row + 5, col + 7]:
                    expected = 0
                assert found[band, row, col] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("input_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 10_000.0)])
def test_a_model_of_another_input_range_gets_its_own_units(input_range):
    low, high = input_range
    scale = (high - low) / 255
    same = dataclasses.replace(
        MODEL,
        input_range=input_range,
        mean=tuple(mean * scale + low for mean in MODEL.mean),
        std=tuple(std * scale for std in MODEL.std),
    )
    arguments = {"window": INNER, "stretch": Stretch.identity(2)}
    expected = normalise(tile_of(), **arguments, model=MODEL)
    np.testing.assert_allclose(normalise(tile_of(), **arguments, model=same), expected, atol=1e-4)


def test_pixels_that_are_no_data_cannot_leak():
    tile = tile_of()
    other = Tile(window=OUTER, pixels=np.where(tile.valid, tile.pixels, 77).astype(np.uint8), valid=tile.valid)
    arguments = {"window": INNER, "stretch": Stretch.identity(2), "model": MODEL}
    np.testing.assert_array_equal(normalise(tile, **arguments), normalise(other, **arguments))


def test_the_tile_is_left_alone():
    tile = tile_of(dtype="float32")
    before = tile.pixels.copy()
    normalise(tile, OUTER, stretch=Stretch.identity(2), model=MODEL)
    np.testing.assert_array_equal(tile.pixels, before)
