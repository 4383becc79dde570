"""Training sees what `atrous segment` shows a network, window by window, with the class of each pixel."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from factories import texture, tiny_model_spec
from PIL import Image

from pipeline.errors import SourceError, SpecError
from pipeline.normalise import normalise
from pipeline.scene import SceneSpec, open_scene
from pipeline.stretch import estimate_stretch
from pipeline.window import Window
from workflows import memory_scene
from workflows.label_source import IGNORED
from workflows.memory_scene import MemoryAllowance
from workflows.open_files import OpenFiles
from workflows.training_scenes import DataSpec, SceneEntry, open_training_scenes

SHAPE = (41, 67)
DATA = DataSpec(classes=("a", "b"), bands=("red", "green", "blue"))
PART = Window(row_off=7, col_off=11, height=13, width=29)
AROUND = Window(row_off=-4, col_off=-9, height=50, width=90)


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(0).choice([0, 1, IGNORED], SHAPE).astype(np.uint8)


@pytest.fixture
def entry(raster, ids) -> SceneEntry:
    return SceneEntry(image=raster(height=41, width=67), label=raster(pixels=ids[None], name="labels.tif"), name="field")


def open_one(entry: SceneEntry, data: DataSpec = DATA, **options: object):
    (scene,) = open_training_scenes([entry], data, **options)  # type: ignore[arg-type]
    return scene


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("input_range", [(0.0, 255.0), (-1.0, 1.0)])
def test_the_network_is_trained_on_what_it_will_see(raster, ids, dtype, input_range):
    pixels = texture((3, *SHAPE), dtype="float32") * (1 if dtype == "uint8" else 7)
    image = raster(pixels=pixels.astype(dtype), nodata=0, holes=((3, 5, 9, 8),))
    entry = SceneEntry(image=image, label=raster(pixels=ids[None], name="labels.tif"))
    data = DataSpec(classes=("a", "b"), bands=("red", "green", "blue"), input_range=input_range)
    with open_one(entry, data) as scene, open_scene(SceneSpec(uri=str(image))) as source:
        found = scene.read(PART)
        model = tiny_model_spec()
        object.__setattr__(model, "input_range", input_range)
        expected = normalise(source.read(PART), PART, stretch=estimate_stretch(source), model=model)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (model.mean, model.std))
    shown = (found.pixels - mean) / std
    shown[:, ~found.valid] = 0
    np.testing.assert_array_equal(shown, expected)
    assert not found.valid.all()
    assert (found.labels[~found.valid] == IGNORED).all()
    np.testing.assert_array_equal(found.labels[found.valid], ids[PART.to_slices()][found.valid])


def test_a_window_beyond_the_scene_repeats_the_edge_and_has_no_label_there(entry, ids):
    with open_one(entry) as scene:
        assert (scene.name, scene.shape, scene.n_bands) == ("field", SHAPE, 3)
        whole, around = scene.read(Window.of_shape(SHAPE)), scene.read(AROUND)
    pad = ((4, 5), (9, 14))
    np.testing.assert_array_equal(around.pixels, np.pad(whole.pixels, ((0, 0), *pad), mode="edge"))
    np.testing.assert_array_equal(around.labels, np.pad(ids, pad, constant_values=IGNORED))
    assert around.pixels.dtype == np.float32
    assert around.valid.all()


@pytest.mark.parametrize(("row", "col"), [(-90, 3), (90, 3), (3, -90), (3, 90), (90, 90)])
def test_a_window_that_misses_the_scene_has_no_label(entry, row, col):
    with open_one(entry) as scene:
        window = scene.read(Window(row_off=row, col_off=col, height=8, width=9))
    assert window.pixels.shape == (3, 8, 9)
    assert (window.labels == IGNORED).all()


def test_bands_and_nodata_are_chosen_by_the_entry(raster, ids):
    image = raster(height=41, width=67, bands=5)
    entry = SceneEntry(image=image, label=raster(pixels=ids[None], name="labels.tif"), bands=(4, 2, 1), nodata=200)
    with open_one(entry) as scene, open_scene(SceneSpec(uri=str(image), bands=(4, 2, 1), nodata=200)) as source:
        tile = source.read(PART)
        np.testing.assert_array_equal(scene.read(PART).pixels, tile.pixels)
        np.testing.assert_array_equal(scene.read(PART).valid, tile.valid)


def test_labels_alone_are_those_of_the_window(raster, ids):
    image = raster(height=41, width=67, nodata=0, holes=((3, 5, 9, 8),))
    with open_one(SceneEntry(image=image, label=raster(pixels=ids[None], name="labels.tif"))) as scene:
        np.testing.assert_array_equal(scene.read_labels(PART), scene.read(PART).labels)
        assert (scene.read_labels(Window(row_off=3, col_off=5, height=9, width=8)) == IGNORED).all()


# Parts


@pytest.fixture
def parts(tmp_path: Path, ids):
    """Six pairs of PNGs that form a scene of 2 x 3, with that scene and its labels."""
    pixels = texture((3, *SHAPE))
    places = itertools.product([(0, 20), (20, 41)], [(0, 30), (30, 40), (40, 67)])
    for number, (rows, cols) in enumerate(places):
        at = slice(*rows), slice(*cols)
        Image.fromarray(np.moveaxis(pixels[:, *at], 0, -1)).save(tmp_path / f"image_{number}.png")
        Image.fromarray(ids[at]).save(tmp_path / f"label_{number}.png")
    return SceneEntry(image=tmp_path / "image_*.png", label=tmp_path / "label_*.png", name="s", mosaic=(2, 3)), pixels


@pytest.mark.parametrize("window", [Window.of_shape(SHAPE), PART, AROUND])
def test_a_mosaic_reads_as_the_scene_that_it_was(parts, ids, window):
    entry, pixels = parts
    with open_one(entry) as scene:
        found = scene.read(window)
    pad = ((4, 5), (9, 14)) if window is AROUND else ((0, 0), (0, 0))
    at = window.to_slices() if window is PART else (slice(None), slice(None))
    np.testing.assert_array_equal(found.pixels, np.pad(pixels[:, *at], ((0, 0), *pad), mode="edge"))
    np.testing.assert_array_equal(found.labels, np.pad(ids[at], pad, constant_values=IGNORED))


def test_without_mosaic_every_file_is_a_scene(parts):
    entry, _ = parts
    scenes = open_training_scenes([SceneEntry(image=entry.image, label=entry.label, name="s")], DATA)
    assert [scene.name for scene in scenes] == [f"s/image_{number}.png" for number in range(6)]
    assert [scene.shape for scene in scenes[:3]] == [(20, 30), (20, 10), (20, 27)]


def test_a_mosaic_may_have_one_label_file(parts, raster, ids):
    entry, _ = parts
    label = raster(pixels=ids[None], name="labels.tif", crs=None)
    with open_one(SceneEntry(image=entry.image, label=label, name="s", mosaic=(2, 3))) as scene:
        np.testing.assert_array_equal(scene.read_labels(Window.of_shape(SHAPE)), ids)


def test_one_file_of_polygons_serves_all_images(tmp_path, raster):
    import geopandas
    import shapely
    from rasterio.transform import Affine

    images = [
        raster(height=20, width=20, name=f"image_{i}.tif", transform=Affine(0.5, 0, 500_000 + 10 * i, 0, -0.5, 2_800_000))
        for i in range(2)
    ]
    box = shapely.box(500_005, 2_799_995, 500_015, 2_800_000)
    geopandas.GeoDataFrame({"class": ["b"]}, geometry=[box], crs="EPSG:32640").to_file(tmp_path / "labels.gpkg")
    left, right = open_training_scenes(
        [SceneEntry(image=images[0].with_name("image_*.tif"), label=tmp_path / "labels.gpkg", name="s", outside="a")], DATA
    )
    expected = np.zeros((20, 20), np.uint8)
    expected[:10, 10:] = 1
    np.testing.assert_array_equal(left.read_labels(Window.of_shape((20, 20))), expected)
    np.testing.assert_array_equal(right.read_labels(Window.of_shape((20, 20))), expected[:, ::-1])


# Memory


def test_small_files_without_random_access_are_decoded_once(parts, monkeypatch):
    entry, _ = parts
    allowance = MemoryAllowance()
    with open_one(entry, allowance=allowance) as scene:
        before = scene.read(PART)
        assert allowance.n_bytes == memory_scene.MOST_BYTES_IN_ALL - 4 * SHAPE[0] * SHAPE[1], "three bands and the labels"
        for path in entry.image.parent.glob("*.png"):
            path.unlink()
        np.testing.assert_array_equal(scene.read(PART).pixels, before.pixels)


@pytest.mark.parametrize("limit", ["one", "all"])
def test_what_does_not_fit_is_read_by_window(parts, ids, limit, monkeypatch):
    entry, pixels = parts
    monkeypatch.setattr(memory_scene, "MOST_BYTES", 1 if limit == "one" else 2**28)
    allowance = MemoryAllowance(n_bytes=2**30 if limit == "one" else 1)
    left = allowance.n_bytes
    with open_one(entry, allowance=allowance) as scene:
        found = scene.read(PART)
    assert allowance.n_bytes == left
    np.testing.assert_array_equal(found.pixels, pixels[:, *PART.to_slices()])
    np.testing.assert_array_equal(found.labels, ids[PART.to_slices()])


def test_more_scenes_than_open_files(raster, ids):
    label = raster(pixels=ids[None], name="labels.tif")
    entries = [SceneEntry(image=raster(height=41, width=67, seed=i, name=f"{i}.tif"), label=label) for i in range(4)]
    allowance = MemoryAllowance(files=OpenFiles(3))
    scenes = open_training_scenes(entries, DATA, allowance=allowance)
    for _ in range(2):
        for i, scene in enumerate(scenes):
            found = scene.read(PART)
            np.testing.assert_array_equal(found.pixels, texture((3, *SHAPE), seed=i)[:, *PART.to_slices()])
            np.testing.assert_array_equal(found.labels, ids[PART.to_slices()])
            assert len(allowance.files) == 3
    for scene in scenes:
        scene.close()
    assert len(allowance.files) == 0


def test_a_tiled_file_stays_on_disk(entry):
    allowance = MemoryAllowance()
    with open_one(entry, allowance=allowance):
        assert allowance.n_bytes == memory_scene.MOST_BYTES_IN_ALL


# What does not fit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "none_*.png"}, "names no file"),
        ({"label": "label_0.png", "mosaic": None}, "finds 6 files and .* finds 1"),
        ({"mosaic": (2, 2)}, "finds 6 files and a mosaic of 2 x 2 needs 4"),
        ({"mosaic": (3, 2)}, "do not form a 3 x 2 mosaic: in row order they have 20 x 30, 20 x 10, 20 x 27, 21 x 30"),
        ({"image": "image_0.png", "label": "label_1.png", "mosaic": None}, "20 x 10 px.* and the scene 20 x 30 px"),
        ({"bands": (1, 2)}, r"has 2 bands and the configuration names 3 \(red, green, blue\)"),
    ],
)
def test_files_that_do_not_fit_are_refused(parts, changes, words):
    entry, _ = parts
    folder = entry.image.parent
    given = {"image": entry.image, "label": entry.label, "name": "s", "mosaic": (2, 3)}
    given |= {name: folder / value if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(SourceError, match=words):
        open_training_scenes([SceneEntry(**given)], DATA)


def test_parts_of_different_kinds_are_refused(parts, tmp_path):
    entry, _ = parts
    Image.fromarray(np.zeros((20, 10), np.uint16)).save(tmp_path / "image_1.png")
    data = DataSpec(classes=("a", "b"), bands=("gray",))
    with pytest.raises(SourceError, match="the parts of s have 1 bands of uint16, 1 bands of uint8"):
        open_training_scenes([SceneEntry(image=entry.image, label=entry.label, name="s", mosaic=(2, 3), bands=(1,))], data)


@pytest.mark.parametrize("name", ["image_3.png", "label_3.png"])
def test_a_damaged_part_is_named(parts, name):
    entry, _ = parts
    path = entry.image.with_name(name)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SourceError, match=name):
        open_training_scenes([entry], DATA)


@pytest.mark.parametrize("mosaic", [(0, 3), (2,), (1, -2)])
def test_a_mosaic_without_parts_is_refused(mosaic):
    with pytest.raises(SpecError, match=r"give \[rows, columns\]"):
        SceneEntry(image=Path("a"), label=Path("b"), mosaic=mosaic)
