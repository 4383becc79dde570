"""Zarr scenes against numpy, and what their attributes say about place and nodata."""

import json

import numpy as np
import pytest
import rioxarray  # noqa: F401 - gives xarray its CRS accessor
import xarray
import zarr
from rasterio.crs import CRS

from pipeline.errors import SourceError, WindowError
from pipeline.scene import SceneSpec, open_scene
from pipeline.window import Window

HEIGHT, WIDTH = 101, 203
WINDOW = Window(row_off=13, col_off=150, height=40, width=53)
PIXELS = np.random.default_rng(3).integers(0, 1000, (3, HEIGHT, WIDTH)).astype(np.uint16)
TRANSFORM = [10.0, 0.0, 500.0, 0.0, -10.0, 900.0]


def write(path, pixels=PIXELS, *, names=None, version=3, attributes=None, chunks=None, **options):
    extra = {"dimension_names": names} if version == 3 else {}
    array = zarr.create_array(
        str(path),
        shape=pixels.shape,
        dtype=pixels.dtype,
        chunks=chunks or tuple(min(side, 64) for side in pixels.shape),
        zarr_format=version,
        attributes=attributes or {},
        **extra,
        **options,
    )
    array[...] = pixels
    return path


def crop(array):
    return array[(..., *WINDOW.to_slices())]


def info_of(path, **spec):
    with open_scene(SceneSpec(uri=str(path), **spec)) as scene:
        return scene.info


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("stored", "names", "bands"),
    [
        pytest.param(PIXELS[0], None, (1,), id="y, x"),
        pytest.param(PIXELS, None, (1, 2, 3), id="band first: the smaller end"),
        pytest.param(np.moveaxis(PIXELS, 0, -1), None, (1, 2, 3), id="band last: the smaller end"),
        pytest.param(PIXELS, ("band", "y", "x"), (1, 2, 3), id="band, y, x by name"),
        pytest.param(np.moveaxis(PIXELS, 0, -1), ("lat", "lon", "c"), (1, 2, 3), id="y, x, band by name"),
    ],
)
def test_a_window_has_the_arrays_pixels(tmp_path, version, stored, names, bands):
    attributes = {"_ARRAY_DIMENSIONS": names} if version == 2 and names else None
    path = write(tmp_path / "a.zarr", stored, names=names, version=version, attributes=attributes)
    with open_scene(SceneSpec(uri=str(path))) as scene:
        tile = scene.read(WINDOW)
        assert scene.bands == bands
        assert scene.info.shape == (HEIGHT, WIDTH)
        assert scene.info.block_shape == (64, 64)
        assert (scene.info.driver, scene.info.random_access, scene.info.mask_kind) == ("Zarr", True, "none")
    np.testing.assert_array_equal(tile.pixels, crop(PIXELS[: len(bands)]))
    assert tile.valid.all()


def test_names_win_over_sizes(tmp_path):
    pixels = np.zeros((50, 60, 7), dtype=np.uint8)
    assert info_of(write(tmp_path / "a.zarr", pixels, names=("band", "y", "x"))).n_bands == 50


@pytest.mark.parametrize("last", [True, False], ids=["band last", "band first"])
def test_only_the_selected_bands_are_given_in_the_order_asked_for(tmp_path, last):
    path = write(tmp_path / "a.zarr", np.moveaxis(PIXELS, 0, -1) if last else PIXELS)
    with open_scene(SceneSpec(uri=str(path), bands=(3, 1))) as scene:
        np.testing.assert_array_equal(scene.read(WINDOW).pixels, crop(PIXELS[[2, 0]]))
    with open_scene(SceneSpec(uri=str(path))) as scene, pytest.raises(WindowError):
        scene.read(WINDOW.grow(50))


def test_shards_are_read(tmp_path):
    path = write(tmp_path / "a.zarr", chunks=(1, 16, 16), shards=(1, 64, 64))
    with open_scene(SceneSpec(uri=str(path))) as scene:
        np.testing.assert_array_equal(scene.read(WINDOW).pixels, crop(PIXELS))


# --- groups


def test_the_only_image_of_a_group_is_the_scene(tmp_path):
    zarr.create_group(str(tmp_path / "a.zarr"))
    write(tmp_path / "a.zarr" / "image")
    write(tmp_path / "a.zarr" / "x", np.arange(WIDTH))
    assert info_of(tmp_path / "a.zarr").n_bands == 3


def test_level_0_of_a_group_is_the_scene(tmp_path):
    zarr.create_group(str(tmp_path / "a.zarr"))
    write(tmp_path / "a.zarr" / "0")
    write(tmp_path / "a.zarr" / "1", PIXELS[:, ::2, ::2])
    assert info_of(tmp_path / "a.zarr").shape == (HEIGHT, WIDTH)


def test_level_0_may_be_a_group(tmp_path):
    zarr.create_group(str(tmp_path / "a.zarr")).create_group("0")
    write(tmp_path / "a.zarr" / "0" / "image")
    assert info_of(tmp_path / "a.zarr").shape == (HEIGHT, WIDTH)


def test_a_group_with_two_images_is_refused_with_their_paths(tmp_path):
    zarr.create_group(str(tmp_path / "a.zarr"))
    write(tmp_path / "a.zarr" / "red", PIXELS[0])
    write(tmp_path / "a.zarr" / "nir", PIXELS[0])
    with pytest.raises(SourceError, match=r"2 arrays \(nir, red\).*a\.zarr/nir"):
        info_of(tmp_path / "a.zarr")
    assert info_of(tmp_path / "a.zarr" / "red").n_bands == 1


def test_a_group_without_images_is_refused(tmp_path):
    zarr.create_group(str(tmp_path / "a.zarr"))
    with pytest.raises(SourceError, match="without a 2-D or 3-D array"):
        info_of(tmp_path / "a.zarr")


# --- nodata


@pytest.mark.parametrize(
    ("attributes", "nodata"),
    [
        ({}, None),
        ({"nodata": 7}, 7),
        ({"_FillValue": 9}, 9),
        ({"nodata": 7, "_FillValue": 9}, 7),
        ({"_FillValue": "AAAAAAAA+H8="}, np.nan),
        ({"nodata": "NaN"}, np.nan),
    ],
    ids=["none: fill_value is no nodata", "nodata", "_FillValue", "nodata first", "xarray's base64", "text"],
)
def test_nodata_comes_from_the_attributes(tmp_path, attributes, nodata):
    path = write(tmp_path / "a.zarr", PIXELS.astype(np.float32), attributes=attributes)
    info = info_of(path)
    assert info.nodata == nodata or (np.isnan(info.nodata) and np.isnan(nodata))
    assert info.mask_kind == ("none" if nodata is None else "value")
    assert info_of(path, nodata=3).nodata == 3


def test_pixels_of_nodata_are_invalid(tmp_path):
    path = write(tmp_path / "a.zarr", PIXELS % 2, attributes={"nodata": 0})
    with open_scene(SceneSpec(uri=str(path))) as scene:
        np.testing.assert_array_equal(scene.read(WINDOW).valid, crop((PIXELS % 2).any(axis=0)))


def test_a_nodata_attribute_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(SourceError, match="a number is expected"):
        info_of(write(tmp_path / "a.zarr", attributes={"nodata": "none"}))


# --- place


@pytest.mark.parametrize(
    "crs",
    [{"proj:code": "EPSG:32618"}, {"proj:wkt2": CRS.from_epsg(32618).to_wkt(version="WKT2_2019")}],
    ids=["code", "wkt2"],
)
@pytest.mark.parametrize("on_group", [True, False], ids=["on the group", "on the array"])
def test_the_place_comes_from_the_proj_and_spatial_conventions(tmp_path, crs, on_group):
    attributes = crs | {"spatial:transform": TRANSFORM}
    zarr.create_group(str(tmp_path / "a.zarr"), attributes=attributes if on_group else {})
    write(tmp_path / "a.zarr" / "image", attributes={} if on_group else attributes)
    georef = info_of(tmp_path / "a.zarr").georef
    assert (georef.epsg, georef.transform) == (32618, tuple(TRANSFORM))


@pytest.mark.parametrize("version", [2, 3])
def test_the_place_comes_from_cf_as_xarray_writes_it(tmp_path, version):
    x, y = 505.0 + 10 * np.arange(WIDTH), 895.0 - 10 * np.arange(HEIGHT)
    image = xarray.DataArray(PIXELS, dims=("band", "y", "x"), coords={"y": y, "x": x}, name="image")
    image.rio.write_crs("EPSG:32618").to_dataset().to_zarr(tmp_path / "a.zarr", zarr_format=version, consolidated=False)
    info = info_of(tmp_path / "a.zarr")
    assert (info.georef.epsg, info.shape) == (32618, (HEIGHT, WIDTH))
    assert info.georef.transform == pytest.approx(tuple(TRANSFORM))
    assert info_of(tmp_path / "a.zarr" / "image").georef == info.georef


def test_uneven_coordinates_are_no_transform(tmp_path):
    zarr.create_group(str(tmp_path / "a.zarr"))
    write(tmp_path / "a.zarr" / "image", names=("band", "y", "x"))
    write(tmp_path / "a.zarr" / "x", np.arange(float(WIDTH)) ** 2)
    write(tmp_path / "a.zarr" / "y", np.arange(float(HEIGHT)))
    assert info_of(tmp_path / "a.zarr").georef.transform is None


# --- refusals


@pytest.mark.parametrize("dtype", ["complex64", "int64", "bool"])
def test_a_pixel_type_that_is_not_read_is_refused(tmp_path, dtype):
    with pytest.raises(SourceError, match=f"pixels of type {dtype}"):
        info_of(write(tmp_path / "a.zarr", np.ones((5, 7), dtype=dtype)))


def test_python_objects_are_refused(tmp_path):
    path = write(tmp_path / "a.zarr", version=2)
    metadata = json.loads((path / ".zarray").read_text())
    metadata |= {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "fill_value": None}
    (path / ".zarray").write_text(json.dumps(metadata))
    with pytest.raises(SourceError):
        info_of(path)


def test_a_chunk_of_more_than_2_gib_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_array(str(path), shape=(50_000, 50_001), chunks=(50_000, 50_001), dtype="uint8")
    with pytest.raises(SourceError, match="2500050000 bytes each"):
        info_of(path)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5)], ids=["1-D", "4-D"])
def test_other_numbers_of_axes_are_refused(tmp_path, shape):
    with pytest.raises(SourceError, match="has the shape"):
        info_of(write(tmp_path / "a.zarr", np.zeros(shape, dtype=np.uint8)))


def test_another_order_of_named_axes_is_refused(tmp_path):
    with pytest.raises(SourceError, match="transpose it"):
        info_of(write(tmp_path / "a.zarr", names=("x", "y", "band")))


def test_metadata_that_makes_no_sense_is_refused(tmp_path):
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(SourceError, match="does not open as Zarr"):
        info_of(tmp_path)


def test_a_band_beyond_the_last_and_too_many_pixels_are_refused(tmp_path):
    path = write(tmp_path / "a.zarr")
    with pytest.raises(SourceError, match="bands 1 to 3"):
        info_of(path, bands=(4,))
    with pytest.raises(SourceError, match="at most 100 px"):
        info_of(path, max_pixels=100)


def test_a_damaged_chunk_is_an_error_with_the_window(tmp_path):
    path = write(tmp_path / "a.zarr")
    for chunk in (path / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:-20])
    with open_scene(SceneSpec(uri=str(path))) as scene, pytest.raises(SourceError, match="damaged there"):
        scene.read(WINDOW)
