"""No file outside the scene is read, nothing is run, and no header asks for more than there can be."""

import json
import os
import pickle

import numpy as np
import pytest
import rasterio
import zarr
from PIL import Image
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import SourceError, SpecError
from pipeline.georef import wkt_of_code
from pipeline.scene import SceneSpec, open_scene
from pipeline.scene_info import check_ratio
from pipeline.zarr_guard import CODECS, check_codecs

PIXELS = np.random.default_rng(3).integers(0, 255, (3, 60, 70), dtype=np.uint8)
RAW_VRT = """<VRTDataset rasterXSize="70" rasterYSize="60"><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>
<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand"><SourceFilename>{}</SourceFilename><ImageOffset>0</ImageOffset>
<PixelOffset>1</PixelOffset><LineOffset>70</LineOffset></VRTRasterBand></VRTDataset>"""


def read(path, **changes):
    with open_scene(SceneSpec(uri=str(path), **changes)) as scene:
        return scene.read(scene.info.window)


@pytest.fixture
def tiff(tmp_path):
    path = tmp_path / "scene" / "a.tif"
    path.parent.mkdir()
    with rasterio.open(path, "w", driver="GTiff", count=3, height=60, width=70, dtype="uint8") as target:
        target.write(PIXELS)
    return path


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(bytes(range(256)) * 20)
    return path


@pytest.fixture(params=[2, 3])
def store(request, tmp_path):
    path = tmp_path / "a.zarr"
    array = zarr.create_array(str(path), shape=PIXELS.shape, dtype="u1", chunks=(3, 32, 32), zarr_format=request.param)
    array[...] = PIXELS
    return path


def chunk_of(store):
    return next(path for path in (store / "c" / "0" / "0" / "0", store / "0.0.0") if path.exists())


def document_of(store):
    return next(path for path in (store / "zarr.json", store / ".zarray") if path.exists())


def change(store, **values):
    document = document_of(store)
    document.write_text(json.dumps({**json.loads(document.read_text()), **values}))


# --- files


@pytest.mark.parametrize("suffix", [".msk", ".MSK", ".ovr", ".OVR"])
def test_a_companion_that_shows_another_file_is_refused(tiff, secret, suffix):
    tiff.with_name(tiff.name + suffix).write_text(RAW_VRT.format(secret))
    with pytest.raises(SourceError, match="a TIFF in the same folder is expected"):
        read(tiff)


def test_a_companion_elsewhere_is_refused(tiff, tmp_path):
    mask = tmp_path / "other.tif"
    mask.write_bytes(tiff.read_bytes())
    tiff.with_name("a.tif.msk").symlink_to(mask)
    with pytest.raises(SourceError, match="in the same folder"):
        read(tiff)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    for path in (tmp_path / "a.tif", "/dev/zero"):
        with pytest.raises(SourceError, match="only files and folders are read"):
            read(path)


# --- Zarr


def test_a_chunk_that_leads_out_of_the_store_is_an_error(store, secret):
    chunk_of(store).unlink()
    chunk_of_link = store / ("c/0/0/0" if (store / "zarr.json").exists() else "0.0.0")
    chunk_of_link.symlink_to(secret)
    with pytest.raises(SourceError, match="leads out of the store"):
        read(store)


def test_a_link_within_the_store_is_followed(store):
    chunk = chunk_of(store)
    chunk.rename(store / "elsewhere")
    chunk.symlink_to(store / "elsewhere")
    np.testing.assert_array_equal(read(store).pixels, PIXELS)


def test_a_store_behind_a_link_is_read(store, tmp_path):
    (tmp_path / "link.zarr").symlink_to(store)
    np.testing.assert_array_equal(read(tmp_path / "link.zarr").pixels, PIXELS)


@pytest.mark.parametrize("which", [chunk_of, document_of])
def test_a_pipe_in_a_store_is_not_waited_for(store, which):
    path = which(store)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SourceError):
        read(store)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "codecs",
    [
        {"compressor": {"id": "pickle"}, "filters": None},
        {"filters": [{"id": "pickle"}], "compressor": None},
        {"compressor": {"id": "json2"}},
        {"codecs": [{"name": "numcodecs.pickle"}, {"name": "bytes"}]},
        {"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]},
    ],
    ids=str,
)
def test_nothing_is_unpickled(store, tmp_path, codecs):
    chunk_of(store).write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    if ("codecs" in codecs) == (store / "zarr.json").exists():
        change(store, **codecs)
    with pytest.raises(SourceError):
        read(store)
    assert not (tmp_path / "touched").exists()


def test_codecs_inside_of_shards_are_looked_at_too():
    inner = [{"name": "bytes"}, {"name": "numcodecs.pickle"}]
    shards = {"name": "sharding_indexed", "configuration": {"codecs": inner, "index_codecs": [{"name": "bytes"}]}}
    with pytest.raises(SourceError, match=r"is stored with numcodecs\.pickle;"):
        check_codecs("a.zarr", {"codecs": (shards,)})
    check_codecs("a.zarr", {"codecs": ({**shards, "configuration": {"codecs": [{"name": "bytes"}, {"name": "zstd"}]}},)})


def test_no_codec_that_runs_code_or_makes_objects_is_let_through():
    assert not CODECS & {
        "pickle",
        "json2",
        "msgpack2",
        "vlen-utf8",
        "vlen-bytes",
        "vlen-array",
        "categorize",
        "base64",
        "n5_wrapper",
    }


@pytest.mark.parametrize(
    "attributes",
    [
        {"grid_mapping": "../secret.zarr"},
        {"grid_mapping": ["a"]},
        {"spatial:transform": ["a", "b", "c", "d", "e", "f"]},
        {"spatial:transform": [float("nan")] * 6},
        {"nodata": {"a": 1}},
    ],
    ids=str,
)
def test_attributes_that_make_no_sense_are_refused_or_not_used(tmp_path, attributes):
    zarr.create_array(str(tmp_path / "secret.zarr"), shape=(), dtype="i4", attributes={"crs_wkt": "EPSG:32640"})
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    group.create_array("image", shape=(60, 70), dtype="u1", attributes=attributes)[...] = 1
    try:
        with open_scene(SceneSpec(uri=str(tmp_path / "a.zarr"))) as scene:
            assert scene.info.georef.crs_wkt is None
    except (SourceError, SpecError):
        pass


def test_a_document_too_large_is_not_read(store):
    with document_of(store).open("r+b") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(SourceError, match="metadata of at most"):
        read(store)


# --- places


@pytest.mark.parametrize(
    "text",
    [
        "{secret}",
        "http://127.0.0.1:9/x",
        "ESRI::{secret}",
        "+init={secret}:1",
        "+proj=utm +zone=40 +nadgrids={secret}",
        'PROJCS["x",EXTENSION["PROJ4","+proj=merc +nadgrids={secret}"]]',
        'BOUNDCRS[PARAMETERFILE["x","{secret}"]]',
    ],
)
def test_a_crs_that_names_a_file_or_an_address_is_refused(secret, text):
    secret.write_text("EPSG:4326")
    with pytest.raises(SpecError, match="an authority code such as EPSG:32618, or WKT"):
        wkt_of_code(text.replace("{secret}", str(secret)))


@pytest.mark.parametrize("text", ["EPSG:3857", "urn:ogc:def:crs:EPSG::32640", "OGC:CRS84", "ESRI:54009"])
def test_codes_and_their_wkt_are_known(text):
    wkt = wkt_of_code(text)
    assert wkt_of_code(wkt) == wkt


# --- limits


def test_a_picture_that_declares_far_more_than_it_holds_is_refused_unless_it_is_trusted(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("L", (4000, 4000)).save(path, optimize=True)
    monkeypatch.setattr("pipeline.scene_info._BOMB_PIXELS", 10**6)
    monkeypatch.setattr("pipeline.scene_info._BOMB_RATIO", 500)
    with pytest.raises(SourceError, match=r"give --max-pixels 16000000 if the file is trusted"):
        read(path)
    assert not read(path, max_pixels=16_000_000).pixels.any()


@pytest.mark.parametrize(
    ("n_pixels", "file_bytes", "refused"),
    [(3_600_000_000, 3_490_000, True), (3_600_000_000, 3_600_001, False), (10**9, 10, False)],
)
def test_only_large_scenes_of_few_bytes_are_refused(n_pixels, file_bytes, refused):
    def check():
        check_ratio(SceneSpec(uri="a.png"), n_pixels=n_pixels, n_bytes=n_pixels, file_bytes=file_bytes)

    if refused:
        with pytest.raises(SourceError, match="to 1"):
            check()
    else:
        check()


def test_a_sparse_geotiff_is_no_bomb(tmp_path):
    path = tmp_path / "a.tif"
    profile = {"height": 60_000, "width": 60_000, "count": 1, "dtype": "uint8", "SPARSE_OK": True}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, blockxsize=2048, blockysize=2048, **profile) as target:
        target.write(PIXELS[:1], window=RasterioWindow(0, 0, 70, 60))
    with open_scene(SceneSpec(uri=str(path))) as scene:
        assert scene.info.shape == (60_000, 60_000)


def test_a_tile_too_large_for_memory_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    profile = {"height": 60_000, "width": 60_000, "count": 1, "dtype": "uint8", "SPARSE_OK": True}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, blockxsize=60_000, blockysize=60_000, **profile):
        pass
    with pytest.raises(SourceError, match="2147483648 bytes are read at once"):
        open_scene(SceneSpec(uri=str(path)))


def test_a_file_with_too_many_bands_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", count=1025, height=2, width=2, dtype="uint8") as target:
        target.write(np.ones((1025, 2, 2), np.uint8))
    with pytest.raises(SourceError, match="declares 1025 bands; at most 1024"):
        open_scene(SceneSpec(uri=str(path)))


def test_a_spec_knows_what_may_become_of_damage():
    with pytest.raises(SpecError, match="choose one of fail, nodata"):
        SceneSpec(uri="a.tif", on_read_error="skip")
