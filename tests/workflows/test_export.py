"""Exports against the labels in the store, and against disks and scenes that fail."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

from pipeline import geotiff
from pipeline.errors import SpecError, StoreError
from pipeline.georef import Georef
from pipeline.network.spec import ClassSpec
from pipeline.scene import SceneSpec
from pipeline.store import StoreLayout, create_store, write_block
from pipeline.window import Window
from workflows import export

HEIGHT, WIDTH, CHUNK = 701, 1103, 256
TRANSFORM = (0.5, 0.0, 330_000.25, 0.0, -0.5, 2_786_000.75)
CLASSES = (
    ClassSpec(name="Land (unpaved area)", color="#8429f6"),
    ClassSpec(name="Water", color="#e2a929"),
    ClassSpec(name="Road", color="#6ec1e4"),
)

GREYS = {"black": "#000000", "grey": "#808080", "white": "#ffffff"}


def make_labels() -> np.ndarray:
    """Large areas with a few stray pixels, as a network gives them; a corner without data."""
    rows, cols = np.ogrid[:HEIGHT, :WIDTH]
    labels = ((rows // 130 + cols // 170) % 3).astype(np.uint8)
    stray = np.random.default_rng(3).random(labels.shape) < 0.02
    labels[stray] = (labels[stray] + 1) % 3
    labels[:200, :300] = 255
    return labels


def make_store(path, labels, georef, classes=CLASSES) -> None:
    height, width = labels.shape
    layout = StoreLayout(height=height, width=width, chunk=CHUNK, classes=classes, georef=georef)
    create_store(path, layout)
    for row in range(0, height, 512):
        window = Window.from_bounds(rows=(row, min(row + 512, height)), cols=(0, width))
        block = labels[window.to_slices()]
        write_block(path, window, {"labels": block, "confidence": np.full_like(block, 200)})


@pytest.fixture(scope="module")
def labels():
    return make_labels()


@pytest.fixture(scope="module")
def store(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("export") / "out.zarr"
    make_store(path, labels, Georef(crs_wkt=CRS.from_epsg(32640).to_wkt(), transform=TRANSFORM))
    return path


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(np.random.default_rng(4).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    return SceneSpec(uri=str(path))


def test_the_geotiff_holds_the_labels_the_place_the_colours_and_the_names(store, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(geotiff, "_WINDOW_PX", 512)
    summary = export.run(store, tmp_path / "labels.tif")
    with rasterio.open(tmp_path / "labels.tif") as raster:
        np.testing.assert_array_equal(raster.read(1), labels)
        assert raster.crs.to_epsg() == 32640
        assert raster.transform == Affine(*TRANSFORM)
        assert (raster.nodata, raster.dtypes) == (255, ("uint8",))
        assert [raster.colormap(1)[i][:3] for i in range(3)] == [one.rgb for one in CLASSES]
        assert raster.tags(1)["class_0"] == "Land (unpaved area)"
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.overviews(1)
    assert summary.n_pixels == {one.name: int((labels == i).sum()) for i, one in enumerate(CLASSES)}
    assert summary.n_nodata == (labels == 255).sum()
    assert summary.n_bytes == (tmp_path / "labels.tif").stat().st_size
    assert summary.warnings == ()
    assert list(tmp_path.iterdir()) == [tmp_path / "labels.tif"]


def test_overviews_hold_the_majority_and_not_the_class_of_the_mean_colour(tmp_path):
    greys = tuple(ClassSpec(name=name, color=color) for name, color in GREYS.items())
    labels = np.tile(np.array([[0, 0], [2, 1]], np.uint8), (300, 400))
    make_store(tmp_path / "out.zarr", labels, Georef(crs_wkt=None, transform=None), greys)
    export.run(tmp_path / "out.zarr", tmp_path / "labels.tif")
    with rasterio.open(tmp_path / "labels.tif", overview_level=0) as raster:
        assert raster.shape == (300, 400)
        assert (raster.read(1) == 0).all()


def test_a_geotiff_without_georeference_claims_none(labels, tmp_path):
    make_store(tmp_path / "out.zarr", labels[:300, :200], Georef(crs_wkt=None, transform=None))
    export.run(tmp_path / "out.zarr", tmp_path / "labels.TIF")
    with rasterio.open(tmp_path / "labels.TIF") as raster:
        assert raster.crs is None
        assert raster.transform == Affine.identity()
        np.testing.assert_array_equal(raster.read(1), labels[:300, :200])


def test_what_is_not_written_yet_is_exported_as_nodata(tmp_path):
    georef = Georef(crs_wkt=None, transform=None)
    layout = StoreLayout(height=101, width=203, chunk=64, classes=CLASSES, georef=georef)
    create_store(tmp_path / "out.zarr", layout)
    summary = export.run(tmp_path / "out.zarr", tmp_path / "new" / "labels.tif")
    assert summary.n_nodata == 101 * 203


def test_the_picture_shows_labels_with_their_own_colours(store, tmp_path):
    summary = export.run(store, tmp_path / "labels.png", max_side_px=900)
    with Image.open(tmp_path / "labels.png") as image:
        assert max(image.size) <= 900
        pixels = np.asarray(image)
    for one in CLASSES:
        assert (pixels == one.rgb).all(axis=-1).sum() > 5_000
    assert summary.warnings == ()
    assert summary.n_pixels["Water"] > 0


def test_the_picture_shows_the_scene_beside_the_labels(store, scene, tmp_path):
    assert export.run(store, tmp_path / "labels.png", scene=scene).warnings == ()
    with Image.open(tmp_path / "labels.png") as both:
        size = both.size
    export.run(store, tmp_path / "labels.png", overwrite=True)
    with Image.open(tmp_path / "labels.png") as alone:
        assert alone.size != size


@pytest.mark.parametrize(("dtype", "n_bands", "nodata"), [("uint16", 1, 0), ("float32", 4, None), ("int16", 2, -1)], ids=str)
def test_scenes_of_any_kind_can_be_looked_at(store, tmp_path, dtype, n_bands, nodata):
    path = tmp_path / "scene.tif"
    pixels = np.random.default_rng(5).normal(900, 200, (n_bands, HEIGHT, WIDTH)).astype(dtype)
    pixels[:, :50] = -1 if nodata is None else nodata
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": n_bands, "dtype": dtype}
    with rasterio.open(path, "w", nodata=nodata, **profile) as raster:
        raster.write(pixels)
    summary = export.run(store, tmp_path / "labels.png", scene=SceneSpec(uri=str(path)), max_side_px=600)
    assert summary.warnings == ()


def test_a_scene_that_moved_away_leaves_a_picture_of_the_labels_and_a_warning(store, tmp_path):
    gone = SceneSpec(uri=str(tmp_path / "gone.tif"))
    summary = export.run(store, tmp_path / "labels.png", scene=gone)
    assert len(summary.warnings) == 1
    assert "gone.tif" in summary.warnings[0]
    assert (tmp_path / "labels.png").is_file()


def test_a_scene_of_another_size_is_not_put_below_the_labels(store, tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tmp_path / "other.png")
    summary = export.run(store, tmp_path / "labels.png", scene=SceneSpec(uri=str(tmp_path / "other.png")))
    assert "702 x 1103" in summary.warnings[0]


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_progress_rises_to_its_total(store, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(geotiff, "_WINDOW_PX", 512)
    seen = []
    export.run(store, tmp_path / f"labels.{suffix}", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
    assert seen


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_no_more_than_one_window_is_in_memory(tmp_path, monkeypatch, suffix):
    georef = Georef(crs_wkt=None, transform=None)
    create_store(tmp_path / "o.zarr", StoreLayout(height=2500, width=5000, classes=CLASSES, georef=georef))
    sizes = []
    read = export.read_labels

    def record(path, window):
        sizes.append(window.n_pixels)
        return read(path, window)

    monkeypatch.setattr(export, "read_labels", record)
    monkeypatch.setattr(geotiff, "read_labels", record)
    export.run(tmp_path / "o.zarr", tmp_path / f"labels.{suffix}")
    assert sum(sizes) == 2500 * 5000
    assert max(sizes) <= 2048 * 2048


@pytest.mark.parametrize("name", ["labels.gpkg", "labels.parquet", "labels.geojson", "labels"])
def test_an_unknown_ending_is_refused_with_the_known_ones(store, tmp_path, name):
    with pytest.raises(SpecError, match=r"\.tif and \.png"):
        export.run(store, tmp_path / name)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_an_existing_file_is_replaced_only_on_request(store, tmp_path, suffix):
    dest = tmp_path / f"labels.{suffix}"
    dest.write_bytes(b"mine")
    with pytest.raises(StoreError, match="exists already"):
        export.run(store, dest)
    assert dest.read_bytes() == b"mine"
    export.run(store, dest, overwrite=True)
    assert dest.stat().st_size > 100


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_what_is_no_output_is_refused(tmp_path, suffix):
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(StoreError, match=r"empty\.zarr"):
        export.run(tmp_path / "empty.zarr", tmp_path / f"labels.{suffix}")


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_a_place_that_cannot_be_written_is_a_store_error(store, tmp_path, suffix):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        export.run(store, tmp_path / "file" / f"labels.{suffix}")
    (tmp_path / f"dir.{suffix}").mkdir()
    with pytest.raises(StoreError, match="directory"):
        export.run(store, tmp_path / f"dir.{suffix}", overwrite=True)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_a_failing_disk_leaves_the_old_file_and_no_traces(store, tmp_path, monkeypatch, suffix):
    dest = tmp_path / f"labels.{suffix}"
    dest.write_bytes(b"old")

    def fail(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="No space left"):
        export.run(store, dest, overwrite=True)
    assert dest.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [dest]


def test_a_geotiff_that_does_not_read_back_is_not_published(store, tmp_path, monkeypatch):
    real = geotiff._optimise

    def damage(tiles, target):
        with rasterio.open(tiles, "r+") as raster:
            raster.write(np.zeros((1, 1), np.uint8), 1, window=rasterio.windows.Window(0, 0, 1, 1))
        real(tiles, target)

    monkeypatch.setattr(geotiff, "_optimise", damage)
    with pytest.raises(StoreError, match="does not read back"):
        export.run(store, tmp_path / "labels.tif")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_output_is_named(labels, tmp_path):
    make_store(tmp_path / "out.zarr", labels[:300, :200], Georef(crs_wkt=None, transform=None))
    (tmp_path / "out.zarr/0/labels/c/0/0").write_bytes(b"")
    with pytest.raises(StoreError, match="damaged"):
        export.run(tmp_path / "out.zarr", tmp_path / "labels.tif")
    assert not list(tmp_path.glob("labels.tif*"))


@pytest.mark.parametrize("change", [{"opacity": -0.1}, {"max_side_px": 100}], ids=str)
def test_numbers_out_of_range_are_refused(store, tmp_path, change):
    with pytest.raises(SpecError):
        export.run(store, tmp_path / "labels.png", **change)
