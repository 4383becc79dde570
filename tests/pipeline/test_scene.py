"""Opening and reading files, against rasterio and numpy; refusing what is damaged or not meant."""

import json
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import SourceError, SpecError, WindowError
from pipeline.georef import Georef
from pipeline.scene import SceneInfo, SceneSpec, Tile, open_scene, read_reflected, reflected_indices
from pipeline.scene_info import DTYPES
from pipeline.window import Window

RASTERS = Path(__file__).parents[2].parent / "shared" / "data" / "rasters"
shared = [
    pytest.mark.shared,
    pytest.mark.skipif(not RASTERS.is_dir(), reason="the shared data is not here"),
]
HEIGHT, WIDTH = 101, 203
WINDOW = Window(row_off=13, col_off=150, height=40, width=53)


def noise(n_bands=3, dtype="uint8", height=HEIGHT, width=WIDTH):
    rng = np.random.default_rng(7)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=(n_bands, height, width)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (n_bands, height, width), dtype=dtype, endpoint=True)


def write(path, pixels, *, driver="GTiff", mask=None, alpha=False, **options):
    profile = {"count": pixels.shape[0], "height": pixels.shape[1], "width": pixels.shape[2]}
    with rasterio.open(path, "w", driver=driver, dtype=pixels.dtype, **profile, **options) as target:
        if alpha:
            target.colorinterp = [*target.colorinterp[:-1], ColorInterp.alpha]
        target.write(pixels)
        if mask is not None:
            target.write_mask(mask)
    return path


def crop(array, window):
    return array[(..., *window.to_slices())]


def assert_crosses_processes(error):
    """Dask pickles the whole chain of an error, and GDAL's own errors do not unpickle."""
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.fixture
def tiff(tmp_path):
    return write(tmp_path / "scene.tif", noise(), tiled=True, blockxsize=64, blockysize=64, compress="deflate")


# --- reading


@pytest.mark.parametrize(
    ("name", "driver", "options", "random_access"),
    [
        pytest.param("a.tif", "GTiff", {"tiled": True, "blockxsize": 64, "blockysize": 64}, True, id="tiles"),
        pytest.param("a.tif", "GTiff", {"blockysize": 1}, False, id="strips of one row"),
        pytest.param("a.tif", "GTiff", {"interleave": "band", "blockysize": 64}, True, id="thick strips"),
        pytest.param("a.tif", "COG", {}, True, id="cloud-optimised"),
        pytest.param("a.png", "PNG", {}, False, id="PNG"),
        pytest.param("a.bmp", "BMP", {}, True, id="BMP"),
        pytest.param("a.jp2", "JP2OpenJPEG", {"QUALITY": 100, "REVERSIBLE": "YES"}, False, id="JP2, one tile"),
        pytest.param(
            "a.jp2",
            "JP2OpenJPEG",
            {"QUALITY": 100, "REVERSIBLE": "YES", "BLOCKXSIZE": 64, "BLOCKYSIZE": 64},
            True,
            id="JP2, tiles",
        ),
    ],
)
def test_a_window_has_the_files_pixels(tmp_path, name, driver, options, random_access):
    path = write(tmp_path / name, noise(), driver=driver, **options)
    with open_scene(SceneSpec(uri=str(path))) as scene:
        tile = scene.read(WINDOW)
        np.testing.assert_array_equal(tile.pixels, crop(noise(), WINDOW))
        assert tile.valid.all()
        assert tile.window == WINDOW
        assert scene.info.shape == (HEIGHT, WIDTH)
        assert scene.info.random_access is random_access
        assert (scene.info.n_bands, scene.info.dtype, scene.info.mask_kind) == (3, "uint8", "none")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("dtype", DTYPES)
def test_pixels_keep_their_type(tmp_path, dtype):
    path = write(tmp_path / "a.tif", noise(2, dtype))
    with open_scene(SceneSpec(uri=str(path))) as scene:
        tile = scene.read(scene.info.window)
    assert tile.pixels.dtype == dtype
    np.testing.assert_array_equal(tile.pixels, noise(2, dtype))


def test_only_the_selected_bands_are_given_in_the_order_asked_for(tiff):
    with open_scene(SceneSpec(uri=str(tiff), bands=(3, 1, 3))) as scene:
        np.testing.assert_array_equal(scene.read(WINDOW).pixels, crop(noise()[[2, 0, 2]], WINDOW))
        assert scene.bands == (3, 1, 3)
        assert scene.info.n_bands == 3


def test_a_window_outside_the_scene_is_refused(tiff):
    with open_scene(SceneSpec(uri=str(tiff))) as scene, pytest.raises(WindowError, match="inside the scene"):
        scene.read(Window(row_off=100, col_off=0, height=2, width=1))


def test_threads_with_a_scene_each_read_the_same(tiff):
    results = []

    def work():
        with open_scene(SceneSpec(uri=str(tiff))) as scene:
            results.append(scene.read(WINDOW).pixels)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(result, crop(noise(), WINDOW)) for result in results)


def test_names_of_bands_are_descriptions_then_colours_then_numbers(tmp_path):
    path = write(tmp_path / "a.tif", noise(5, "int16"))
    with rasterio.open(path, "r+") as target:
        target.set_band_description(2, "near infrared")
    with open_scene(SceneSpec(uri=str(path))) as scene:
        assert scene.info.band_names == ("band_1", "near infrared", "band_3", "band_4", "band_5")


@pytest.mark.parametrize("name", ["a#b.tif", "a?b=c.tif", "GTIFF_RAW:x.tif", "ünï cödé.tif"])
def test_a_file_may_have_an_odd_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "plain.tif", noise()).rename(tmp_path / name)
    with open_scene(SceneSpec(uri=name)) as scene:
        np.testing.assert_array_equal(scene.read(WINDOW).pixels, crop(noise(), WINDOW))


def test_the_information_survives_json_and_pickle(tmp_path):
    path = write(
        tmp_path / "a.tif",
        noise(2, "float32"),
        nodata=np.nan,
        crs="EPSG:32618",
        transform=rasterio.Affine(10, 0, 5, 0, -10, 7),
    )
    with open_scene(SceneSpec(uri=str(path))) as scene:
        info = scene.info
    again = SceneInfo.from_dict(json.loads(json.dumps(info.to_dict(), allow_nan=False)))
    assert again.to_dict() == info.to_dict() == pickle.loads(pickle.dumps(info)).to_dict()
    assert np.isnan(again.nodata)
    assert again.georef == Georef(crs_wkt=info.georef.crs_wkt, transform=(10, 0, 5, 0, -10, 7))
    assert again.georef.epsg == 32618


# --- valid pixels


def test_a_pixel_is_invalid_where_all_selected_bands_are_nodata(tmp_path):
    pixels = noise() % 2
    path = write(tmp_path / "a.tif", pixels, nodata=0)
    with rasterio.open(path) as oracle, open_scene(SceneSpec(uri=str(path))) as scene:
        np.testing.assert_array_equal(scene.read(WINDOW).valid, crop(oracle.dataset_mask() != 0, WINDOW))
        assert scene.info.mask_kind == "value"
    with open_scene(SceneSpec(uri=str(path), bands=(2,))) as scene:
        np.testing.assert_array_equal(scene.read(WINDOW).valid, crop(pixels[1] != 0, WINDOW))


@pytest.mark.parametrize(
    ("dtype", "stored", "nodata"),
    [
        pytest.param("float32", np.nan, np.nan, id="NaN"),
        pytest.param("float32", np.float32(-3.4028235e38), -3.4028235e38, id="lowest float32"),
        pytest.param("float64", -9999.5, -9999.5, id="fraction"),
        pytest.param("uint16", 65535, 65535, id="highest uint16"),
        pytest.param("float32", np.inf, np.inf, id="infinity"),
    ],
)
def test_nodata_of_any_kind_is_found(tmp_path, dtype, stored, nodata):
    pixels = noise(2, dtype)
    pixels[:, 20:30, 160:180] = stored
    path = write(tmp_path / "a.tif", pixels, nodata=nodata)
    with rasterio.open(path) as oracle, open_scene(SceneSpec(uri=str(path))) as scene:
        valid = scene.read(WINDOW).valid
        np.testing.assert_array_equal(valid, crop(oracle.dataset_mask() != 0, WINDOW))
    assert not valid.all()


@pytest.mark.parametrize("nodata", [-1, 256, 0.5, np.nan, np.inf], ids=["below", "above", "fraction", "NaN", "inf"])
def test_a_nodata_value_that_the_type_cannot_hold_marks_nothing(tiff, nodata):
    with open_scene(SceneSpec(uri=str(tiff), nodata=nodata)) as scene:
        assert scene.read(WINDOW).valid.all()


def test_the_specs_nodata_wins(tmp_path):
    pixels = noise(1) % 3
    path = write(tmp_path / "a.tif", pixels, nodata=0)
    with open_scene(SceneSpec(uri=str(path), nodata=2)) as scene:
        np.testing.assert_array_equal(scene.read(WINDOW).valid, crop(pixels[0] != 2, WINDOW))
        assert scene.info.nodata == 2


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_alpha_tells_valid_pixels_and_is_no_band(tmp_path, name):
    pixels = noise(4)
    pixels[3] %= 2
    path = write(tmp_path / name, pixels, driver="PNG" if name.endswith("png") else "GTiff", alpha=name[-1] == "f")
    with open_scene(SceneSpec(uri=str(path))) as scene:
        tile = scene.read(WINDOW)
        assert (scene.info.n_bands, scene.info.mask_kind, len(scene.info.band_names)) == (3, "alpha", 3)
    np.testing.assert_array_equal(tile.pixels, crop(pixels[:3], WINDOW))
    np.testing.assert_array_equal(tile.valid, crop(pixels[3] != 0, WINDOW))


def test_a_band_tagged_alpha_is_data_when_it_is_asked_for(tmp_path):
    path = write(tmp_path / "a.tif", noise(4), alpha=True)
    with open_scene(SceneSpec(uri=str(path), bands=(4, 1))) as scene:
        tile = scene.read(WINDOW)
        assert (scene.info.n_bands, scene.info.mask_kind) == (4, "none")
    np.testing.assert_array_equal(tile.pixels, crop(noise(4)[[3, 0]], WINDOW))
    assert tile.valid.all()


@pytest.mark.parametrize("internal", [True, False], ids=["internal", ".msk file"])
def test_a_mask_tells_valid_pixels(tmp_path, internal):
    mask = noise(1)[0] > 100
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path = write(tmp_path / "a.tif", noise(), mask=mask)
    with open_scene(SceneSpec(uri=str(path))) as scene:
        np.testing.assert_array_equal(scene.read(WINDOW).valid, crop(mask, WINDOW))
        assert scene.info.mask_kind == "mask"


@pytest.mark.parametrize("name", ["RGB.byte.tif", "RGBA.byte.tif"])
@pytest.mark.parametrize("mark", [pytest.param(0, marks=shared)], ids=["shared"])
def test_valid_is_rasterios_dataset_mask(name, mark):
    path = RASTERS / name
    with rasterio.open(path) as oracle, open_scene(SceneSpec(uri=str(path))) as scene:
        tile = scene.read(scene.info.window)
        np.testing.assert_array_equal(tile.valid, oracle.dataset_mask() != 0)
        np.testing.assert_array_equal(tile.pixels, oracle.read([1, 2, 3]))
        if name.startswith("RGB."):
            # Masks band by band would drop 2 thousand dark pixels that are zero in one band only.
            per_band = oracle.read_masks().all(axis=0)
            assert 0 < np.count_nonzero(tile.valid & ~per_band) < 5000


# --- reflection


@pytest.fixture(scope="module")
def small_scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    scenes = {}
    for shape in [(1, 1), (1, 7), (5, 1), (2, 3), (4, 16), (11, 13)]:
        pixels = np.arange(2 * shape[0] * shape[1], dtype=np.uint16).reshape(2, *shape)
        path = write(folder / f"{shape[0]}x{shape[1]}.tif", pixels, nodata=0)
        scenes[shape] = (open_scene(SceneSpec(uri=str(path), bands=(1,))), pixels[:1])
    yield scenes
    for scene, _ in scenes.values():
        scene.close()


def walk(position, size):
    """Go pixel by pixel, turning round at both ends: the naive oracle."""
    index, step = 0, 1
    for _ in range(abs(position)):
        if size == 1:
            break
        if not 0 <= index + step < size:
            step = -step
        index += step
    return index


@given(
    shape=st.sampled_from([(1, 1), (1, 7), (5, 1), (2, 3), (4, 16), (11, 13)]),
    rows=st.tuples(st.integers(-40, 40), st.integers(1, 30)),
    cols=st.tuples(st.integers(-40, 40), st.integers(1, 30)),
    in_runs=st.booleans(),
)
def test_a_window_outside_sees_the_scene_mirrored(small_scenes, shape, rows, cols, in_runs):
    scene, pixels = small_scenes[shape]
    window = Window(row_off=rows[0], col_off=cols[0], height=rows[1], width=cols[1])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.scene._MIN_RUN_PX", 1 if in_runs else 100)
        tile = read_reflected(scene, window)
    row_indices = [walk(row, shape[0]) for row in range(window.row_off, window.row_end)]
    col_indices = [walk(col, shape[1]) for col in range(window.col_off, window.col_end)]
    expected = pixels[:, row_indices][:, :, col_indices]
    assert isinstance(tile, Tile)
    assert tile.window == window
    np.testing.assert_array_equal(tile.pixels, expected)
    np.testing.assert_array_equal(tile.valid, expected[0] != 0)


@given(st.integers(-100, 100), st.integers(1, 50), st.integers(0, 30), st.integers(1, 20), st.integers(1, 12))
def test_a_reflected_position_does_not_depend_on_the_window(start, count, inset, part, size):
    whole = reflected_indices(start, count + inset + part, size)
    inner = reflected_indices(start + inset, part, size)
    np.testing.assert_array_equal(whole[inset : inset + part], inner)


@pytest.mark.parametrize("shape", [(4, 16), (11, 13), (2, 3)])
def test_reflection_is_numpys(small_scenes, shape):
    scene, pixels = small_scenes[shape]
    tile = read_reflected(scene, Window.of_shape(shape).grow(37))
    np.testing.assert_array_equal(tile.pixels[0], np.pad(pixels[0], 37, mode="reflect"))


@pytest.mark.parametrize("strip", [1, 3, 16])
def test_a_mirrored_window_is_the_same_read_in_strips(tmp_path, monkeypatch, strip):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 50, 40), np.uint8)
    path = tmp_path / "scene.tif"
    shape = {"height": 50, "width": 40, "count": 2, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, blockxsize=16, blockysize=16, **shape) as file:
        file.write(pixels)
    window = Window(row_off=-20, col_off=7, height=90, width=60)
    monkeypatch.setattr("pipeline.scene._STRIP_ROWS", strip)
    with open_scene(SceneSpec(uri=str(path))) as scene:
        tile = read_reflected(scene, window)
    rows, cols = (reflected_indices(*span) for span in ((-20, 90, 50), (7, 60, 40)))
    np.testing.assert_array_equal(tile.pixels, pixels[:, rows[:, None], cols])
    np.testing.assert_array_equal(tile.valid, (pixels != 0).any(axis=0)[rows[:, None], cols])


# --- refusals


def test_a_spec_checks_itself():
    for wrong in [{"bands": ()}, {"bands": (0, 1)}, {"bands": (-1,)}, {"max_pixels": 0}]:
        with pytest.raises(SpecError):
            SceneSpec(uri="a.tif", **wrong)
    with pytest.raises(SpecError, match="empty path"):
        SceneSpec(uri="")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nowhere.tif", "does not exist"),
        ("/vsicurl/https://example.org/a.tif", "only local files"),
        ("/vsimem/a.tif", "only local files"),
        ("https://example.org/a.tif", "only local files"),
        ("s3://bucket/a.tif", "only local files"),
        ("file:///tmp/a.tif", "only local files"),
        ("zip+file:///tmp/a.zip!a.tif", "only local files"),
        ("GTIFF_DIR:1:a.tif", "only local files"),
        ("MEM:::DATAPOINTER=1", "only local files"),
        ("NETCDF:a.nc:b", "only local files"),
    ],
)
def test_what_is_no_local_file_is_refused(uri, message):
    with pytest.raises(SourceError, match=message):
        open_scene(SceneSpec(uri=uri))


def test_a_directory_that_is_no_zarr_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"directory without zarr\.json"):
        open_scene(SceneSpec(uri=str(tmp_path)))


VRT = """<VRTDataset rasterXSize="2" rasterYSize="2">
<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">
<SourceFilename relativetoVRT="0">/etc/passwd</SourceFilename></VRTRasterBand></VRTDataset>"""


@pytest.mark.parametrize("content", [b"no raster", b"", VRT.encode()], ids=["text", "empty", "VRT"])
def test_another_format_named_tif_is_refused_with_the_drivers_that_are_allowed(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="GTiff, JP2OpenJPEG, PNG, JPEG") as caught:
        open_scene(SceneSpec(uri=str(path)))
    assert_crosses_processes(caught.value)


def test_a_band_beyond_the_last_is_refused(tiff):
    with pytest.raises(SourceError, match=r"band 4 of .* has bands 1 to 3"):
        open_scene(SceneSpec(uri=str(tiff), bands=(1, 4)))


@pytest.mark.parametrize("dtype", ["complex64", "int64", "uint64"])
def test_a_pixel_type_without_brightness_or_precision_is_refused(tmp_path, dtype):
    path = write(tmp_path / "a.tif", np.ones((1, 5, 7), dtype=dtype))
    with pytest.raises(SourceError, match=f"pixels of type {dtype}"):
        open_scene(SceneSpec(uri=str(path)))


def test_a_palette_image_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise(1)[0]).convert("P").save(path)
    with pytest.raises(SourceError, match="gdal_translate -expand rgb"):
        open_scene(SceneSpec(uri=str(path)))


def test_the_numbers_of_a_palette_are_read_where_they_are_asked_for(tmp_path):
    picture = Image.fromarray(noise()[0]).convert("RGB").quantize(5)
    picture.save(tmp_path / "a.png")
    with open_scene(SceneSpec(uri=str(tmp_path / "a.png")), indices=True) as scene:
        numbers = scene.read(scene.info.window).pixels
        np.testing.assert_array_equal(numbers[0], np.asarray(picture))
        np.testing.assert_array_equal(np.array(scene.palette)[numbers[0]], np.asarray(picture.convert("RGB")))


def test_a_scene_with_too_many_pixels_is_refused_before_it_is_read(tiff):
    with pytest.raises(SourceError, match="101 x 203 = 20503 px; at most 20502 px"):
        open_scene(SceneSpec(uri=str(tiff), max_pixels=20502))


# --- damage


@pytest.mark.parametrize("missing", [1, 1000, 20000], ids=lambda n: f"{n} bytes")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}, id="tiles"),
        pytest.param({"interleave": "band", "blockysize": 16}, id="strips, band by band"),
        pytest.param({"BIGTIFF": "YES", "blockysize": 1}, id="BigTIFF"),
    ],
)
def test_a_truncated_geotiff_is_found_when_it_is_opened(tmp_path, options, missing):
    path = write(tmp_path / "a.tif", noise(), **options)
    os.truncate(path, path.stat().st_size - missing)
    with pytest.raises(SourceError, match=r"cut short: its block in column \d+, row \d+ of band \d"):
        open_scene(SceneSpec(uri=str(path)))


@pytest.mark.parametrize("missing", [1, 1000, 10000], ids=lambda n: f"{n} bytes")
@pytest.mark.parametrize(("driver", "end"), [("PNG", "IEND"), ("JPEG", "FF D9"), ("BMP", "end at byte")])
def test_a_truncated_image_is_found_when_it_is_opened(tmp_path, driver, end, missing):
    path = write(tmp_path / "a.img", noise(), driver=driver)
    os.truncate(path, path.stat().st_size - missing)
    with pytest.raises(SourceError, match=f"cut short.*{end}"):
        open_scene(SceneSpec(uri=str(path)))


@pytest.mark.parametrize("driver", ["PNG", "JPEG"])
def test_bytes_after_the_end_of_an_image_do_no_harm(tmp_path, driver):
    path = write(tmp_path / "a.img", noise(), driver=driver)
    with path.open("ab") as file:
        file.write(bytes(100_000))
    with open_scene(SceneSpec(uri=str(path))) as scene:
        assert scene.read(WINDOW).pixels.shape == (3, 40, 53)


def test_the_end_of_a_preview_is_not_taken_for_the_end_of_the_jpeg(tmp_path):
    path = write(tmp_path / "a.jpg", noise(), driver="JPEG")
    content = path.read_bytes()[:-1000]
    path.write_bytes(content[:2] + b"\xff\xe1\x00\x06\xff\xd9\xff\xd9" + content[2:])
    with pytest.raises(SourceError, match="cut short"):
        open_scene(SceneSpec(uri=str(path)))


def test_damaged_pixels_are_an_error_with_the_window(tmp_path):
    path = write(tmp_path / "a.tif", noise(), blockysize=64, compress="deflate")
    with rasterio.open(path) as reader:
        start = int(reader.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[start : start + 10] = bytes(10)
    path.write_bytes(content)
    with open_scene(SceneSpec(uri=str(path))) as scene:
        with pytest.raises(SourceError, match=r"row_off=60.*damaged there") as caught:
            scene.read(Window(row_off=60, col_off=0, height=10, width=WIDTH))
        assert scene.read(Window(row_off=0, col_off=0, height=64, width=WIDTH)).valid.all()
    assert_crosses_processes(caught.value)


@pytest.mark.parametrize("threads", ["1", "ALL_CPUS"])
@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_what_failed_once_never_reads_afterwards(tmp_path, monkeypatch, name, threads):
    monkeypatch.setenv("GDAL_NUM_THREADS", threads)  # with threads, GDAL keeps the undecoded tile as if it were pixels
    if name == "a.tif":
        path = write(tmp_path / name, noise(), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
        with rasterio.open(path) as reader:
            start = int(reader.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    else:
        path = write(tmp_path / name, noise(), driver="JPEG")
        start = path.stat().st_size // 2
    content = bytearray(path.read_bytes())
    content[start : start + 400] = b"\xff\x00" * 200
    path.write_bytes(content)
    windows = [Window(row_off=row, col_off=col, height=40, width=100) for row in (30, 60) for col in (60, 100)]
    with open_scene(SceneSpec(uri=str(path))) as scene:
        for window in windows * 3:
            with pytest.raises(SourceError, match="damaged there"):
                scene.read(window)


def test_the_check_of_a_very_large_file_is_quick(tmp_path):
    path = tmp_path / "a.tif"
    profile = {"height": 60_000, "width": 60_000, "count": 3, "dtype": "uint8", "SPARSE_OK": True}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, blockxsize=256, blockysize=256, **profile) as target:
        target.write(noise(3, height=256, width=256), window=RasterioWindow(25_600, 51_200, 256, 256))
    start = time.perf_counter()
    open_scene(SceneSpec(uri=str(path))).close()
    assert time.perf_counter() - start < 2
