"""What of a damaged scene is lost depends on the scene, never on the window through which it is seen."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from factories import texture

from pipeline.errors import SourceError, WindowError
from pipeline.scene import SceneSpec, open_scene, scene_files, unreadable_in
from pipeline.staging import stage
from pipeline.window import Window, hull

HEIGHT, WIDTH = 301, 203
PIXELS = np.random.default_rng(7).integers(1, 255, (3, HEIGHT, WIDTH), dtype=np.uint8)
TILES = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}


def write(path, pixels=PIXELS, *, driver="GTiff", mask=None, **options):
    profile = {"count": pixels.shape[0], "height": pixels.shape[1], "width": pixels.shape[2]}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"),
        rasterio.open(path, "w", driver=driver, dtype=pixels.dtype, **profile, **options) as target,
    ):
        target.write(pixels)
        if mask is not None:
            target.write_mask(mask)
    return path


def spoil(path, offset, content=bytes(16)):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def spoil_tile(path, row, col, band=1):
    with rasterio.open(path) as reader:
        offset = int(reader.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band))
    spoil(path, offset)


def tolerant(path, **changes):
    return open_scene(SceneSpec(uri=str(path), on_read_error="nodata", **changes))


def window(rows, cols):
    return Window.from_bounds(rows=rows, cols=cols)


def tiff(folder):
    path = write(folder / "a.tif", **TILES)
    spoil_tile(path, 1, 2)
    return path, [window((64, 128), (128, 192))]


def tiff_band_by_band(folder):
    path = write(folder / "a.tif", interleave="band", **TILES)
    spoil_tile(path, 4, 3, band=2)
    return path, [window((256, HEIGHT), (192, WIDTH))]


def tiff_with_mask(folder):
    path = write(folder / "a.tif", mask=PIXELS[0] > 100, **TILES)
    spoil_tile(path, 0, 0)
    return path, [window((0, 64), (0, 64))]


def tiff_cut_short(folder):
    path = write(folder / "a.tif", tiled=True, blockxsize=64, blockysize=64)
    os.truncate(path, path.stat().st_size - 1)
    return path, [window((256, HEIGHT), (192, WIDTH))]


def strips(folder):
    path = write(folder / "a.tif", compress="deflate", blockysize=1)
    for row in (10, 11, 200):
        spoil_tile(path, row, 0)
    return path, [window((10, 12), (0, WIDTH)), window((200, 201), (0, WIDTH))]


def one_strip(folder):
    pixels = texture((3, 2500, 60))
    path = write(folder / "a.tif", pixels, compress="deflate", blockysize=2500)
    spoil(path, path.stat().st_size // 2, b"\xff" * 40)
    return path, None


def png(folder):
    path = write(folder / "a.png", driver="PNG")
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path, None


def jpeg(folder):
    path = write(folder / "a.jpg", driver="JPEG")
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path, None


def bmp(folder):
    path = write(folder / "a.bmp", driver="BMP")  # its last row comes first
    os.truncate(path, path.stat().st_size - 100 * ((3 * WIDTH + 3) // 4 * 4))
    return path, [window((0, 100), (0, WIDTH))]


def zarr_chunk(folder):
    path = folder / "a.zarr"
    array = zarr.create_array(
        str(path), shape=PIXELS.shape, chunks=(1, 64, 64), dtype="u1", compressors=zarr.codecs.ZstdCodec(checksum=True)
    )
    array[...] = PIXELS
    spoil(path / "c" / "1" / "2" / "0", 40)
    return path, [window((128, 192), (0, 64))]


CASES = [tiff, tiff_band_by_band, tiff_with_mask, tiff_cut_short, strips, one_strip, png, jpeg, bmp, zarr_chunk]


@pytest.fixture(params=CASES, ids=lambda build: build.__name__)
def damaged(request, tmp_path):
    """Return a damaged scene, and the places that are lost; None for the lower rows of a file that is decoded from the first one on."""
    return request.param(tmp_path)


def read_in(path, side, **changes):
    """Return (pixels, valid, lost places), read in windows of a size, the last one first."""
    with tolerant(path, **changes) as scene:
        pixels, valid = np.ones((len(scene.bands), *scene.info.shape), scene.info.dtype), np.zeros(scene.info.shape, bool)
        for row in reversed(range(0, scene.info.height, side)):
            for col in range(0, scene.info.width, side):
                part = Window(row_off=row, col_off=col, height=side, width=side).clip(scene.info.shape)
                tile = scene.read(part)
                pixels[:, *part.to_slices()], valid[part.to_slices()] = tile.pixels, tile.valid
        return pixels, valid, unreadable_in(scene, scene.info.window)


def test_only_what_is_damaged_is_lost_and_it_is_named(damaged):
    path, places = damaged
    with tolerant(path) as scene:
        tile = scene.read(scene.info.window)
        lost = unreadable_in(scene, scene.info.window)
    if places is None:
        (place,) = lost
        assert 0 < place.row_off < place.row_end == tile.pixels.shape[1]
    else:
        assert list(lost) == places
    gone = np.zeros(tile.valid.shape, bool)
    for place in lost:
        gone[place.to_slices()] = True
    assert not tile.valid[gone].any()
    assert not tile.pixels[:, gone].any()
    assert tile.valid[~gone].any()
    if path.suffix != ".jpg" and tile.pixels.shape == PIXELS.shape:
        np.testing.assert_array_equal(tile.pixels[:, ~gone], PIXELS[:, ~gone])


@pytest.mark.parametrize("side", [50, 64, 131])
def test_the_same_is_lost_whatever_the_windows(damaged, side):
    path, _ = damaged
    for one, other in zip(read_in(path, side), read_in(path, 1000), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_the_setting_it_is_an_error(damaged):
    path, _ = damaged
    with pytest.raises(SourceError), open_scene(SceneSpec(uri=str(path))) as scene:
        scene.read(scene.info.window)


def test_places_are_told_of_the_window_that_is_asked_for(tmp_path):
    path, (place,) = tiff(tmp_path)
    with tolerant(path) as scene:
        scene.read(scene.info.window)
        assert unreadable_in(scene, window((100, 300), (0, 140))) == (window((100, 128), (128, 140)),)
        assert unreadable_in(scene, window((0, 64), (0, 140))) == ()
        with pytest.raises(WindowError):
            scene.read(place.grow(100))


def test_what_fails_once_and_then_reads_is_not_lost(tmp_path, monkeypatch):
    path, (place,) = tiff(tmp_path)
    write(path, **TILES)
    with tolerant(path) as scene:
        real, failed = type(scene._scene).read, []

        def read(self, part):
            if part.intersect(place) and len(failed) < 2:
                failed.append(part)
                raise SourceError("the disk was busy")
            return real(self, part)

        monkeypatch.setattr(type(scene._scene), "read", read)
        np.testing.assert_array_equal(scene.read(scene.info.window).pixels, PIXELS)
        assert len(failed) == 2
        assert unreadable_in(scene, scene.info.window) == ()


def test_a_file_whose_header_is_gone_is_refused_all_the_same(tmp_path):
    path, _ = tiff(tmp_path)
    spoil(path, 0)
    with pytest.raises(SourceError, match="does not open"):
        tolerant(path)


# --- staged copies


@pytest.mark.parametrize("build", [strips, one_strip, png, jpeg], ids=lambda build: build.__name__)
@pytest.mark.parametrize("changes", [{}, {"nodata": 7.0}, {"bands": (1,)}], ids=str)
def test_a_staged_copy_has_lost_the_same(tmp_path, build, changes):
    path, _ = build(tmp_path)
    copy = stage(SceneSpec(uri=str(path), on_read_error="nodata", **changes), tmp_path / "staged.tif")
    expected = read_in(path, 1000, **changes)
    for _ in range(2):  # the second time, the finished copy is found
        with open_scene(copy) as scene:
            tile = scene.read(scene.info.window)
            np.testing.assert_array_equal(tile.pixels, expected[0])
            np.testing.assert_array_equal(tile.valid, expected[1])
            assert unreadable_in(scene, scene.info.window) == expected[2] != ()
        inode = Path(copy.uri).stat().st_ino
        assert stage(SceneSpec(uri=str(path), on_read_error="nodata", **changes), tmp_path / "staged.tif") == copy
        assert Path(copy.uri).stat().st_ino == inode


def test_a_copy_with_losses_is_not_used_where_they_are_errors(tmp_path):
    path, _ = strips(tmp_path)
    stage(SceneSpec(uri=str(path), on_read_error="nodata"), tmp_path / "staged.tif")
    with pytest.raises(SourceError, match="damaged there"):
        stage(SceneSpec(uri=str(path)), tmp_path / "staged.tif")


def test_a_tag_that_makes_no_sense_names_nothing(tmp_path):
    path = write(tmp_path / "a.tif", **TILES)
    for text in ("no json", "[[1, 2]]", '[["a", 0, 1, 1]]', "[[0, 0, 9999, 1]]", "[[0, 0, 0, 0]]", "7"):
        with rasterio.open(path, "r+") as file:
            file.update_tags(ATROUS_LOST=text)
        with tolerant(path) as scene:
            assert scene.read(scene.info.window).valid.all()


def test_the_files_of_a_scene_are_those_inside_of_it(tmp_path):
    path, _ = zarr_chunk(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(struct.pack("<d", 1.0))
    (path / "c" / "9").symlink_to(secret)
    files = scene_files(SceneSpec(uri=str(path)))
    assert path / "zarr.json" in files
    assert path / "c" / "9" not in files


def test_hull_of_the_lost_is_in_the_scene(damaged):
    path, _ = damaged
    with tolerant(path) as scene:
        scene.read(scene.info.window)
        assert scene.info.window.contains(hull(unreadable_in(scene, scene.info.window)))
