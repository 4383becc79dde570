"""Staged copies against their sources: the same pixels, the same valid ones, and nothing half-written."""

import os
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.errors import SourceError, SpecError, StoreError
from pipeline.scene import SceneSpec, open_scene
from pipeline.staging import needs_staging, stage
from pipeline.window import Window

BLUE_MARBLE = Path(__file__).parents[2].parent / "shared" / "data" / "rasters" / "bluemarble_8192x4096.jpg"
HEIGHT, WIDTH = 1101, 203


def names(folder):
    return [path.name for path in folder.iterdir()]


def noise(n_bands=3, dtype="uint8", height=HEIGHT, width=WIDTH):
    return np.random.default_rng(7).integers(0, 200, (n_bands, height, width)).astype(dtype)


def write(path, pixels, *, driver="GTiff", mask=None, **options):
    profile = {"count": pixels.shape[0], "height": pixels.shape[1], "width": pixels.shape[2]}
    with rasterio.open(path, "w", driver=driver, dtype=pixels.dtype, **profile, **options) as target:
        target.write(pixels)
        if mask is not None:
            target.write_mask(mask)
    return SceneSpec(uri=str(path))


def assert_same(spec, staged):
    with open_scene(spec) as source, open_scene(staged) as copy:
        before, after = source.read(source.info.window), copy.read(copy.info.window)
        np.testing.assert_array_equal(before.pixels, after.pixels)
        np.testing.assert_array_equal(before.valid, after.valid)
        assert copy.info.georef == source.info.georef
        assert copy.info.dtype == source.info.dtype
        assert copy.info.random_access
        assert not needs_staging(copy.info)


PLACE = {"crs": "EPSG:32618", "transform": rasterio.Affine(10, 0, 500, 0, -10, 900)}


@pytest.mark.parametrize(
    ("build", "needed"),
    [
        pytest.param(lambda p: write(p / "a.png", noise(), driver="PNG"), True, id="PNG"),
        pytest.param(lambda p: write(p / "a.png", noise(1, "uint16"), driver="PNG"), True, id="16-bit PNG"),
        pytest.param(lambda p: write(p / "a.png", noise(4) // 100, driver="PNG"), True, id="PNG with alpha"),
        pytest.param(lambda p: write(p / "a.jpg", noise(), driver="JPEG"), True, id="JPEG"),
        pytest.param(lambda p: write(p / "a.tif", noise(), blockysize=1, **PLACE), True, id="one-row strips"),
        pytest.param(lambda p: write(p / "a.tif", noise(5, "int16") // 100, blockysize=1, nodata=1), True, id="nodata"),
        pytest.param(lambda p: write(p / "a.tif", noise() // 100, blockysize=1, mask=noise(1)[0] > 90), True, id="mask"),
        pytest.param(
            lambda p: replace(write(p / "a.tif", noise(2, "float64") // 100, blockysize=1), nodata=1.0),
            True,
            id="nodata of the spec",
        ),
        pytest.param(
            lambda p: write(p / "a.tif", np.where(noise(1, "f4") > 99, np.nan, 1).astype("f4"), nodata=np.nan),
            True,
            id="NaN",
        ),
        pytest.param(
            lambda p: write(p / "a.tif", noise(), tiled=True, blockxsize=256, blockysize=256),
            False,
            id="tiles",
        ),
    ],
)
def test_a_staged_copy_has_the_same_pixels_and_valid_ones(tmp_path, build, needed):
    spec = build(tmp_path)
    with open_scene(spec) as scene:
        assert needs_staging(scene.info) is needed
    n_files = len(names(tmp_path))
    assert_same(spec, stage(spec, tmp_path / "staged.tif"))
    assert len(names(tmp_path)) == n_files + 1


@pytest.mark.parametrize("bands", [(3, 1), (2,), (4, 1), (1, 2, 3, 4)], ids=str)
def test_a_selection_of_bands_stays_the_same(tmp_path, bands):
    spec = replace(write(tmp_path / "a.png", noise(4) // 100, driver="PNG"), bands=bands)
    assert_same(spec, stage(spec, tmp_path / "staged.tif"))


def test_all_bands_are_copied_whatever_is_selected(tmp_path):
    spec = write(tmp_path / "a.tif", noise(5, "uint16"), blockysize=1)
    staged = stage(replace(spec, bands=(4,)), tmp_path / "staged.tif")
    assert staged.bands == (4,)
    assert_same(spec, replace(staged, bands=None))


def test_a_world_file_without_crs_keeps_the_transform(tmp_path):
    spec = write(tmp_path / "a.jpg", noise(), driver="JPEG")
    (tmp_path / "a.jgw").write_text("0.5\n0\n0\n-0.5\n-179.75\n89.75\n")
    staged = stage(spec, tmp_path / "staged.tif")
    with open_scene(staged) as scene:
        assert scene.info.georef.transform == (0.5, 0.0, -180.0, 0.0, -0.5, 90.0)
        assert scene.info.georef.crs_wkt is None


def test_progress_counts_rows(tmp_path):
    calls = []
    spec = write(tmp_path / "a.png", noise(), driver="PNG")
    stage(spec, tmp_path / "staged.tif", lambda done, total: calls.append((done, total)))
    assert calls == [(512, HEIGHT), (1024, HEIGHT), (HEIGHT, HEIGHT)]


# --- reuse


def test_a_finished_copy_is_used_again(tmp_path):
    spec = write(tmp_path / "a.png", noise(), driver="PNG")
    first = stage(spec, tmp_path / "staged.tif")
    before = (tmp_path / "staged.tif").stat()
    assert stage(spec, tmp_path / "staged.tif") == first
    after = (tmp_path / "staged.tif").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("change", ["time", "pixels", "world file", "copy cut short", "copy is text"])
def test_a_copy_that_does_not_fit_is_made_anew(tmp_path, change):
    spec = write(tmp_path / "a.png", noise(), driver="PNG")
    dest = tmp_path / "staged.tif"
    stage(spec, dest)
    inode = dest.stat().st_ino
    keep = dest.open("rb")  # its inode is not given to another file
    if change == "time":
        os.utime(spec.uri, ns=(0, 0))
    elif change == "pixels":
        write(tmp_path / "a.png", noise() + 1, driver="PNG")
    elif change == "world file":
        (tmp_path / "a.pgw").write_text("0.5\n0\n0\n-0.5\n-179.75\n89.75\n")
    elif change == "copy cut short":
        os.truncate(dest, dest.stat().st_size - 10)
    else:
        dest.unlink()
        dest.write_text("text")
    assert_same(spec, stage(spec, dest))
    assert dest.stat().st_ino != inode
    keep.close()


# --- failure


@contextmanager
def full_disk(n_bytes):
    """Make every write beyond ``n_bytes`` of a file fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [0, 4096, 200_000, 560_000])
def test_a_full_disk_is_named_with_the_bytes_needed_and_leaves_nothing(tmp_path, n_bytes):
    spec = write(tmp_path / "a.png", noise(), driver="PNG")
    with (
        full_disk(n_bytes),
        pytest.raises(StoreError, match=r"needs up to 736045 bytes .* bytes are free") as caught,
    ):
        stage(spec, tmp_path / "staged.tif")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("missing", [1, 60, 1000, 3000, 30_000])
def test_a_copy_that_lacks_a_few_bytes_is_never_taken_for_finished(tmp_path, missing):
    spec = write(tmp_path / "a.tif", noise(), mask=noise(1)[0] > 90, blockysize=1)
    before = sorted(names(tmp_path))
    stage(spec, tmp_path / "staged.tif")
    size = (tmp_path / "staged.tif").stat().st_size
    (tmp_path / "staged.tif").unlink()
    with full_disk(size - missing), pytest.raises(StoreError):
        stage(spec, tmp_path / "staged.tif")
    assert sorted(names(tmp_path)) == before


def test_an_address_that_is_not_local_is_refused(tmp_path):
    with pytest.raises(SourceError, match="only local files"):
        stage(SceneSpec(uri="/vsicurl/https://example.org/a.png"), tmp_path / "staged.tif")


def test_an_unwritable_folder_is_a_store_error(tmp_path):
    spec = write(tmp_path / "a.png", noise(), driver="PNG")
    with pytest.raises(StoreError, match="does not exist"):
        stage(spec, tmp_path / "nowhere" / "staged.tif")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, ValueError])
def test_an_interrupted_copy_leaves_nothing(tmp_path, interrupt):
    spec = write(tmp_path / "a.png", noise(), driver="PNG")

    def stop(done, total):
        raise interrupt

    with pytest.raises(interrupt):
        stage(spec, tmp_path / "staged.tif", stop)
    assert names(tmp_path) == ["a.png"]


def test_a_damaged_source_is_a_source_error_and_leaves_nothing(tmp_path):
    spec = write(tmp_path / "a.png", noise(), driver="PNG")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SourceError, match="damaged there"):
        stage(spec, tmp_path / "staged.tif")
    assert names(tmp_path) == ["a.png"]


def test_a_directory_is_not_staged(tmp_path):
    with pytest.raises(SpecError, match="only files are staged"):
        stage(SceneSpec(uri=str(tmp_path)), tmp_path / "staged.tif")


@pytest.mark.shared
@pytest.mark.skipif(not BLUE_MARBLE.is_file(), reason="the shared data is not here")
def test_the_blue_marble_is_staged_with_its_transform(tmp_path):
    spec = SceneSpec(uri=str(BLUE_MARBLE))
    staged = stage(spec, tmp_path / "staged.tif")
    with open_scene(spec) as source, open_scene(staged) as copy:
        assert copy.info.georef == source.info.georef
        assert copy.info.georef.transform is not None
        assert copy.info.georef.crs_wkt is None
        strip = Window(row_off=1000, col_off=0, height=30, width=8192)
        np.testing.assert_array_equal(source.read(strip).pixels, copy.read(strip).pixels)
