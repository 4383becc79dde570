"""Plain mosaics read as GDAL reads them; whatever else a VRT can say is refused, and GDAL never sees it."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp

from pipeline.errors import SourceError
from pipeline.scene import SceneSpec, open_scene, scene_files, unreadable_in
from pipeline.staging import stage
from pipeline.vrt import read_vrt
from pipeline.window import Window

sys.path.append(str(Path(__file__).parents[1] / "chaos"))
from mutants import VRT_ATTACKS, write_vrt_attack

PIXELS = np.random.default_rng(3).integers(0, 4, (3, 40, 50), dtype=np.uint8)
PART = (
    '<{kind}><SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>{number}</SourceBand>'
    '<SrcRect xOff="{x}" yOff="{y}" xSize="{width}" ySize="{height}"/>'
    '<DstRect xOff="{to_x}" yOff="{to_y}" xSize="{width}" ySize="{height}"/>{more}</{kind}>'
)
WHOLE = {"x": 0, "y": 0, "width": 50, "height": 40, "to_x": 0, "to_y": 0, "more": "", "kind": "SimpleSource"}


def write(path, pixels=PIXELS, *, driver="GTiff", **options):
    with rasterio.open(path, "w", driver=driver, count=len(pixels), height=40, width=50, dtype=pixels.dtype, **options) as file:
        file.write(pixels)
    return path


def vrt(folder, *parts, n_bands=3, head="", band_head="", root=""):
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{number}">{band_head}'
        + "".join(PART.format(**{**WHOLE, "number": number, **part}) for part in parts)
        + "</VRTRasterBand>"
        for number in range(1, n_bands + 1)
    )
    path = folder / "scene.vrt"
    path.write_text(f'<VRTDataset rasterXSize="90" rasterYSize="60"{root}>{head}{bands}</VRTDataset>')
    return path


def scene_of(path, **changes):
    return open_scene(SceneSpec(uri=str(path), allow_vrt=True, **changes))


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    write(home / "a.tif", tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    write(home / "below" / "b.tif", 3 - PIXELS, compress="deflate")
    return home


A, B = {"file": "a.tif"}, {"file": "below/b.tif", "to_x": 40, "to_y": 20}


@pytest.mark.parametrize(
    ("parts", "band_head"),
    [
        pytest.param([A], "", id="one file, 0 beside it"),
        pytest.param([A, B], "<NoDataValue>9</NoDataValue>", id="two that overlap, nodata beside them"),
        pytest.param([B, A], "<NoDataValue>0</NoDataValue>", id="the other above"),
        pytest.param([A, {**B, "kind": "ComplexSource", "more": "<NODATA>2</NODATA>"}], "", id="pixels that are not copied"),
        pytest.param([{**A, "x": 7, "y": 3, "width": 11, "height": 13, "to_x": 60, "to_y": 41}], "", id="part of a file"),
        pytest.param([], "<NoDataValue>300</NoDataValue>", id="nothing, and a nodata value that does not fit"),
    ],
)
def test_a_mosaic_reads_as_gdal_reads_it(folder, parts, band_head):
    path = vrt(folder, *parts, band_head=band_head)
    with rasterio.open(path) as oracle, scene_of(path) as scene:
        for window in (scene.info.window, Window(row_off=17, col_off=31, height=29, width=40)):
            tile = scene.read(window)
            np.testing.assert_array_equal(tile.pixels, oracle.read()[:, *window.to_slices()])
            np.testing.assert_array_equal(tile.valid, oracle.dataset_mask()[window.to_slices()] != 0)
        assert (scene.info.driver, scene.info.shape, scene.info.n_bands) == ("VRT", (60, 90), 3)


def test_what_gdal_makes_of_files_is_read(folder):
    with rasterio.open(folder / "a.tif", "r+") as file:
        file.crs, file.transform = "EPSG:32640", rasterio.Affine(2, 0, 500, 0, -2, 900)
        file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.alpha]
    path = folder / "made.vrt"
    shutil.copy(folder / "a.tif", folder / "copy.tif")
    with rasterio.open(folder / "copy.tif") as source:
        rasterio.shutil.copy(source, path, driver="VRT")
    with rasterio.open(path) as oracle, scene_of(path) as scene:
        tile = scene.read(scene.info.window)
        np.testing.assert_array_equal(tile.pixels, oracle.read([1, 2]))
        np.testing.assert_array_equal(tile.valid, oracle.read(3) != 0)
        assert (scene.info.georef.epsg, scene.info.georef.transform) == (32640, (2, 0, 500, 0, -2, 900))
        assert (scene.info.mask_kind, scene.info.band_names) == ("alpha", ("red", "green"))


def test_bands_and_nodata_that_are_asked_for_win(folder):
    path = vrt(folder, A, B, band_head="<NoDataValue>9</NoDataValue>")
    with scene_of(path, bands=(3, 1), nodata=2.0) as scene, rasterio.open(path) as oracle:
        tile = scene.read(scene.info.window)
        np.testing.assert_array_equal(tile.pixels, oracle.read([3, 1]))
        np.testing.assert_array_equal(tile.valid, (oracle.read([3, 1]) != 2).any(axis=0))
    with pytest.raises(SourceError, match="band 4"):
        scene_of(path, bands=(4,))


def test_without_the_flag_it_is_refused_whatever_its_name(folder):
    path = vrt(folder, A).rename(folder / "scene.tif")
    with pytest.raises(SourceError, match="--allow-vrt"):
        open_scene(SceneSpec(uri=str(path)))
    scene_of(path).close()


@pytest.mark.parametrize("index", range(len(VRT_ATTACKS)), ids=lambda index: str(VRT_ATTACKS[index])[:60])
def test_an_attack_is_refused(tmp_path, index):
    outside, home = tmp_path / "outside", tmp_path / "home"
    outside.mkdir()
    home.mkdir()
    write(outside / "secret.tif", PIXELS[:1])
    write(home / "left.tif", PIXELS[:1])
    (outside / "secret").write_bytes(bytes(2000))
    (outside / "secret.wkt").write_text("EPSG:4326")
    with pytest.raises(SourceError):
        scene_of(write_vrt_attack(home, index))


def test_entities_and_other_roots_are_refused(folder):
    path = vrt(folder, A)
    text = path.read_text()
    for wrong in ('<!DOCTYPE a [<!ENTITY b "c">]>' + text, text[:-3], text.replace("VRTDataset", "VRTDatasets"), "<VRTDataset/>"):
        path.write_text(wrong)
        with pytest.raises(SourceError, match="is a VRT that is not read"):
            scene_of(path)
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(SourceError):
        scene_of(path)


def test_the_scene_of_a_vrt_is_known_by_all_of_its_files(folder):
    path = vrt(folder, A, B)
    expected = {path, *(file.resolve() for file in (folder / "a.tif", folder / "below" / "b.tif"))}
    assert set(scene_files(SceneSpec(uri=str(path), allow_vrt=True))) == expected
    assert scene_files(SceneSpec(uri=str(path))) == [path]


# --- damage


def spoil(path, row, col):
    with rasterio.open(path) as reader:
        offset = int(reader.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(16))


@pytest.mark.parametrize("side", [7, 16, 100])
def test_a_damaged_tile_of_a_file_is_lost_where_it_lies_in_the_mosaic(folder, side):
    path = vrt(folder, {**A, "x": 10, "width": 40, "to_x": 30, "to_y": 20})
    spoil(folder / "a.tif", 1, 1)
    with pytest.raises(SourceError), scene_of(path) as scene:
        scene.read(scene.info.window)
    with scene_of(path, on_read_error="nodata") as scene:
        valid = np.zeros(scene.info.shape, bool)
        for row in range(0, 60, side):
            for col in range(0, 90, side):
                part = Window(row_off=row, col_off=col, height=side, width=side).clip(scene.info.shape)
                valid[part.to_slices()] = scene.read(part).valid
        place = Window(row_off=36, col_off=36, height=16, width=16)
        assert unreadable_in(scene, scene.info.window) == (place,)
    expected = np.ones((60, 90), bool)
    expected[place.to_slices()] = False
    np.testing.assert_array_equal(valid, expected)


def test_a_file_that_is_gone_is_lost_as_a_whole(folder):
    path = vrt(folder, A, B)
    (folder / "below" / "b.tif").unlink()
    with pytest.raises(SourceError, match="does not open"):
        scene_of(path)
    with scene_of(path, on_read_error="nodata") as scene:
        scene.read(scene.info.window)
        assert unreadable_in(scene, scene.info.window) == (Window(row_off=20, col_off=40, height=40, width=50),)


def test_a_mosaic_of_images_is_staged_and_keeps_its_losses(folder):
    write(folder / "c.png", driver="PNG")
    path = vrt(folder, A, {**B, "file": "c.png"})
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:-200])
    spec = SceneSpec(uri=str(path), allow_vrt=True, on_read_error="nodata")
    with open_scene(spec) as scene, open_scene(stage(spec, folder / "staged.tif")) as copy:
        one, other = scene.read(scene.info.window), copy.read(copy.info.window)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.valid, other.valid)
        assert unreadable_in(scene, scene.info.window) == unreadable_in(copy, copy.info.window) != ()


def test_many_files_are_not_all_kept_open(folder):
    parts = []
    for number in range(80):
        shutil.copy(folder / "a.tif", folder / f"{number}.tif")
        parts.append({"file": f"{number}.tif", "width": 1, "height": 40, "to_x": number})
    with scene_of(vrt(folder, *parts)) as scene:
        tile = scene.read(scene.info.window)
        np.testing.assert_array_equal(tile.pixels[:, :40, :80], np.repeat(PIXELS[:, :, :1], 80, axis=2))
        assert len(scene._files) == 64


def test_numbers_are_read_as_they_are(folder):
    found = read_vrt(vrt(folder, {**A, "x": 2, "width": 48, "to_x": 3}, head="<GeoTransform> 1, 2, 0, 3, 0, -2</GeoTransform>"))
    (piece,) = found.bands[0].pieces
    assert (piece.source.col_off, piece.target.col_off, piece.band) == (2, 3, 1)
    assert found.georef.transform == (2, 0, 1, 0, -2, 3)
