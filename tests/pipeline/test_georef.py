"""Georeferences against rasterio's own arithmetic."""

import json
import pickle

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.windows import Window as RasterioWindow
from rasterio.windows import transform as window_transform

from pipeline.errors import SpecError
from pipeline.georef import Georef, wkt_of_code
from pipeline.window import Window

UTM = CRS.from_epsg(32618).to_wkt()
FEET = CRS.from_epsg(2263).to_wkt()
DEGREES = CRS.from_epsg(4326).to_wkt()
NORTH_UP = (10.0, 0.0, 500.0, 0.0, -20.0, 900.0)
ROTATED = (7.0, 2.0, 500.0, 3.0, -6.0, 900.0)


def test_pixel_centres_are_rasterios():
    georef = Georef(crs_wkt=UTM, transform=NORTH_UP)
    affine = rasterio.Affine(*NORTH_UP)
    x, _ = rasterio.transform.xy(affine, [0] * 203, list(range(203)))
    _, y = rasterio.transform.xy(affine, list(range(101)), [0] * 101)
    np.testing.assert_array_equal(georef.x_centres(203), x)
    np.testing.assert_array_equal(georef.y_centres(101), y)


@pytest.mark.parametrize("transform", [None, ROTATED], ids=["no transform", "rotated"])
def test_there_are_no_one_dimensional_coordinates_without_a_rectilinear_transform(transform):
    georef = Georef(crs_wkt=UTM, transform=transform)
    assert georef.x_centres(5) is None
    assert georef.y_centres(5) is None
    assert not georef.is_north_up


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # rasterio 1.4 with affine 3
@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED], ids=["north up", "rotated"])
def test_the_georeference_of_a_window_is_rasterios(transform):
    window = Window(row_off=-7, col_off=11, height=5, width=3)
    oracle = window_transform(RasterioWindow(11, -7, 3, 5), rasterio.Affine(*transform))
    moved = Georef(crs_wkt=UTM, transform=transform).for_window(window)
    assert moved.transform == pytest.approx(tuple(oracle)[:6])
    assert moved.crs_wkt == UTM


def test_a_window_of_a_scene_without_transform_has_none():
    assert Georef().for_window(Window(row_off=1, col_off=1, height=1, width=1)) == Georef()


def test_an_identity_counts_as_no_transform():
    assert Georef(transform=(1, 0, 0, 0, 1, 0)).transform is None


def test_south_up_has_coordinates_but_is_not_north_up():
    georef = Georef(transform=(10.0, 0.0, 0.0, 0.0, 10.0, 0.0))
    assert not georef.is_north_up
    assert georef.y_centres(2).tolist() == [5.0, 15.0]


@pytest.mark.parametrize(
    ("crs", "transform", "size_m"),
    [
        pytest.param(UTM, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), 10.0, id="metres"),
        pytest.param(UTM, (10.0, 0.0, 0.0, 0.0, -40.0, 0.0), 20.0, id="oblong: root of the area"),
        pytest.param(FEET, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), 3.048006, id="US survey feet"),
        pytest.param(DEGREES, (0.1, 0.0, 0.0, 0.0, -0.1, 0.0), None, id="degrees are no length"),
        pytest.param(None, NORTH_UP, None, id="unknown CRS"),
        pytest.param(UTM, None, None, id="no transform"),
        pytest.param("nonsense", NORTH_UP, None, id="CRS that PROJ does not know"),
    ],
)
def test_the_pixel_size_is_in_metres_where_it_is_known(crs, transform, size_m):
    assert Georef(crs_wkt=crs, transform=transform).pixel_size_m == (None if size_m is None else pytest.approx(size_m))


def test_what_is_known_of_the_crs():
    assert Georef(crs_wkt=UTM).epsg == 32618
    assert Georef(crs_wkt=UTM).linear_units == "metre"
    assert not Georef(crs_wkt=UTM).is_geographic
    assert Georef(crs_wkt=DEGREES).is_geographic
    assert (Georef().epsg, Georef().linear_units, Georef().is_geographic) == (None, "unknown", False)


@pytest.mark.parametrize("georef", [Georef(), Georef(crs_wkt=UTM, transform=ROTATED)], ids=["empty", "full"])
def test_a_georeference_survives_json_and_pickle(georef):
    assert Georef.from_dict(json.loads(json.dumps(georef.to_dict()))) == georef
    assert pickle.loads(pickle.dumps(georef)) == georef


@pytest.mark.parametrize("transform", [(1.0, 2.0), (np.nan, 0.0, 0.0, 0.0, 1.0, 0.0)], ids=["two numbers", "NaN"])
def test_a_transform_that_is_none_is_refused(transform):
    with pytest.raises(SpecError, match="six finite numbers"):
        Georef(transform=transform)


def test_an_unknown_code_is_refused():
    assert CRS.from_wkt(wkt_of_code("EPSG:32618")).to_epsg() == 32618
    with pytest.raises(SpecError, match="'EPSG:1' was given"):
        wkt_of_code("EPSG:1")
