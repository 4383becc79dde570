"""Labels mean the same whatever file they come in, and what does not fit the scene is refused."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine
from rasterio.warp import transform

from pipeline.errors import SourceError, SpecError
from pipeline.georef import Georef
from pipeline.network.spec import ClassSpec
from pipeline.store import StoreLayout, create_store, write_block
from pipeline.window import Window
from workflows.label_source import IGNORED, LabelSpec, open_labels

CLASSES = ("land", "road", "water")
COLORS = ("#102030", "#fedcba", "#00ff00")
SHAPE = (41, 67)
UTM = Georef(crs_wkt=rasterio.crs.CRS.from_epsg(32640).to_wkt(), transform=(0.5, 0.0, 500_000.0, 0.0, -0.5, 2_800_000.0))
WHOLE = Window.of_shape(SHAPE)
PART = Window(row_off=7, col_off=11, height=13, width=29)


@pytest.fixture
def ids() -> np.ndarray:
    blocks = np.random.default_rng(0).choice([0, 1, 2, IGNORED], (9, 14)).astype(np.uint8)
    return blocks.repeat(5, axis=0).repeat(5, axis=1)[: SHAPE[0], : SHAPE[1]]


def spec_of(path: Path, **changes: object) -> LabelSpec:
    return LabelSpec(**{"path": path, "classes": CLASSES, **changes})  # type: ignore[arg-type]


def read(spec: LabelSpec, window: Window = WHOLE, *, shape: tuple[int, int] = SHAPE, georef: Georef = UTM) -> np.ndarray:
    with open_labels(spec, shape=shape, georef=georef) as labels:
        assert labels.shape == shape
        return labels.read(window)


def painted(ids: np.ndarray) -> np.ndarray:
    colors = np.zeros((256, 3), np.uint8)
    for index, color in enumerate(COLORS):
        colors[index] = ClassSpec(name="c", color=color).rgb
    return colors[ids]


@pytest.fixture
def written(tmp_path: Path, raster, ids):
    """Return ``write(kind) -> LabelSpec`` of the same labels in one of many files."""

    png, tif = tmp_path / "labels.png", "labels.tif"
    coded = np.array([700, -3, 12, *[0] * 252, 99], np.int16)[ids][None]
    floats = np.where(ids == IGNORED, np.nan, ids)[None].astype(np.float32)
    alpha = np.where(ids == IGNORED, 0, 255).astype(np.uint8)
    colored = {"colors": COLORS, "ignored_colors": ("#000000",)}

    def indexed() -> Path:
        picture = Image.fromarray(ids, "P")
        picture.putpalette(painted(np.arange(256, dtype=np.uint8)).tobytes())
        picture.save(png)
        return png

    def saved(picture: Image.Image) -> Path:
        picture.save(png)
        return png

    kinds = {
        "ids": lambda: spec_of(raster(pixels=ids[None], name=tif)),
        "numbers": lambda: spec_of(
            raster(pixels=coded, name=tif), values={"700": "land", "-3": "road", "12": "water", "99": "ignore"}
        ),
        "floats": lambda: spec_of(raster(pixels=floats, nodata=np.nan, name=tif)),
        "nodata": lambda: spec_of(
            raster(pixels=(ids + 1)[None], name=tif), nodata=0, values={"1": "land", "2": "road", "3": "water"}
        ),
        "numbers in colours": lambda: spec_of(indexed()),
        "rgb": lambda: spec_of(saved(Image.fromarray(painted(ids))), **colored),
        "rgba": lambda: spec_of(saved(Image.fromarray(np.dstack([painted(ids), alpha]))), colors=COLORS),
        "colours by value": lambda: spec_of(
            saved(Image.fromarray(painted(ids))), values={**dict(zip(COLORS, CLASSES, strict=True)), "#000000": "ignore"}
        ),
        "palette": lambda: spec_of(saved(Image.fromarray(painted(ids)).quantize(16)), **colored),
    }
    return lambda kind: kinds[kind]()


KINDS = ["ids", "numbers", "floats", "nodata", "numbers in colours", "rgb", "rgba", "colours by value", "palette"]


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_same_in_every_kind_of_raster(written, ids, kind):
    spec = written(kind)
    np.testing.assert_array_equal(read(spec), ids)
    np.testing.assert_array_equal(read(spec, PART), ids[PART.to_slices()])


@pytest.fixture
def output(tmp_path: Path, ids) -> Path:
    """An output of `atrous segment`, of which one block was never written."""
    path = tmp_path / "out.zarr"
    names = ("water", "land", "road")
    layout = StoreLayout(
        height=SHAPE[0],
        width=SHAPE[1],
        classes=tuple(ClassSpec(name=name, color="#000000") for name in names),
        georef=UTM,
        chunk=32,
        provenance={},
    )
    create_store(path, layout)
    stored = np.array([1, 2, 0, *[IGNORED] * 253], np.uint8)[ids]
    for rows in ((0, 32), (32, 41)):
        for cols in ((0, 32), (32, 64)):
            window = Window.from_bounds(rows=rows, cols=cols)
            here = stored[window.to_slices()]
            write_block(path, window, {"labels": here, "confidence": np.zeros_like(here)})
    return path


def test_an_output_of_ours_is_read_by_the_names_of_its_classes(output, ids):
    expected = ids.copy()
    expected[:, 64:] = IGNORED
    np.testing.assert_array_equal(read(spec_of(output)), expected)


def test_an_output_with_other_names_needs_to_know_which_is_which(output, ids):
    with pytest.raises(
        SourceError, match="has the classes water, land, road; wet, dry are expected; say which is which in values"
    ):
        read(spec_of(output, classes=("wet", "dry")))
    found = read(spec_of(output, classes=("wet", "dry"), values={"water": "wet", "1": "dry", "road": "ignore"}))
    table = np.array([1, IGNORED, 0, *[IGNORED] * 253], np.uint8)
    np.testing.assert_array_equal(found[:, :64], table[ids][:, :64])


@pytest.mark.parametrize(
    ("pixels", "values", "expected"),
    [
        (np.array([0.1, 2.5, np.nan], np.float32), {"0.1": "land", "2.5": "road"}, [0, 1, IGNORED]),
        (np.array([1, 2, 255], np.int16), {"1.5": "land", "1": "road", "2": "water"}, [1, 2, IGNORED]),
        (np.array([4_000_000_000, 16_777_217], np.uint32), {"4000000000": "land", "16777217": "road"}, [0, 1]),
    ],
    ids=["floats", "half numbers are no others", "wide integers"],
)
def test_numbers_are_compared_exactly(raster, pixels, values, expected):
    path = raster(pixels=pixels[None, None], name="labels.tif")
    shape = (1, len(pixels))
    assert read(spec_of(path, values=values), Window.of_shape(shape), shape=shape).tolist() == [expected]


def test_unknown_numbers_are_written_out(raster):
    path = raster(pixels=np.array([[[1_234_567, 0.25]]], np.float32), name="labels.tif")
    with pytest.raises(SourceError, match=r"ignored: 0.25 \(1 px\), 1234567 \(1 px\) in rows 0 to 0; known: 0, 1, 2, 255"):
        read(spec_of(path), Window.of_shape((1, 2)), shape=(1, 2))


def test_255_is_a_number_like_others_where_another_one_means_no_label(raster):
    pixels = np.array([[[0, 255, 1]]], np.uint8)
    path = raster(pixels=pixels, name="labels.tif")
    spec = spec_of(path, nodata=0, values={"255": "water", "1": "road"})
    assert read(spec, Window.of_shape((1, 3)), shape=(1, 3)).tolist() == [[255, 2, 1]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"labels that are neither a class nor ignored: 2 \(\d+ px\).* known: 0, 1, 255"),
        ({"values": {"0": "land"}}, r"1 \(\d+ px\)"),
        ({"colors": COLORS[:2]}, "has 1 bands and no palette"),
    ],
)
def test_a_value_without_a_meaning_is_counted(raster, ids, changes, words):
    spec = spec_of(raster(pixels=ids[None], name="labels.tif"), classes=CLASSES[:2], **changes)
    with pytest.raises(SourceError, match=words):
        read(spec)


def test_a_colour_without_a_meaning_is_counted(written, ids):
    spec = spec_of(written("rgb").path, colors=COLORS)
    with pytest.raises(SourceError, match=rf"colours .*: #000000 \({(ids == IGNORED).sum()} px\) in rows 0 to 40"):
        read(spec)


def test_colours_need_colours_and_ids_one_band(written):
    with pytest.raises(SourceError, match='has 3 bands; class ids need 1: set labels = "colors"'):
        read(spec_of(written("rgb").path))


def test_a_vrt_is_refused_as_everywhere(tmp_path):
    (tmp_path / "labels.tif").write_text("<VRTDataset rasterXSize='67' rasterYSize='41'></VRTDataset>")
    with pytest.raises(SourceError, match="VRT"):
        read(spec_of(tmp_path / "labels.tif"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ()}, "1 to 255 names"),
        ({"classes": ("a", "a")}, "each once"),
        ({"classes": ("ignore",)}, "none of them 'ignore'"),
        ({"colors": ("#000000",)}, "1 label colours were given; there are 3 classes"),
        ({"colors": ("#000000", "#1", "#2")}, "#rrggbb"),
        ({"values": {"1": "lava"}}, r"values\.1 is 'lava'; give one of land, road, water"),
        ({"outside": "lava"}, "outside is 'lava'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(SpecError, match=words):
        spec_of(Path("x.tif"), **changes)


def test_a_name_is_no_number(raster, ids):
    with pytest.raises(SpecError, match="values has 'asphalt'"):
        read(spec_of(raster(pixels=ids[None], name="labels.tif"), values={"asphalt": "road"}))


# Grids


def test_a_raster_that_says_nothing_of_its_place_lies_on_the_scene(written, ids):
    np.testing.assert_array_equal(read(written("rgb"), georef=UTM), ids)
    np.testing.assert_array_equal(read(written("ids"), georef=Georef()), ids)


def test_a_hundredth_of_a_pixel_is_no_difference(raster, ids):
    place = Affine(0.5, 0.0, 500_000.005, 0.0, -0.5, 2_800_000.0)
    np.testing.assert_array_equal(read(spec_of(raster(pixels=ids[None], name="labels.tif", transform=place))), ids)


@pytest.mark.parametrize(
    ("georef", "shape", "words"),
    [
        (UTM, (41, 66), r"has 41 x 67 px, EPSG:32640 and the transform \(0.5, .*, and the scene 41 x 66 px.*differ in size"),
        (
            Georef(crs_wkt=rasterio.crs.CRS.from_epsg(32641).to_wkt(), transform=UTM.transform),
            SHAPE,
            "the scene .*EPSG:32641 .*differ in CRS",
        ),
        (
            Georef(crs_wkt=UTM.crs_wkt, transform=(0.5, 0, 500_001, 0, -0.5, 2_800_000)),
            SHAPE,
            "the scene .*500001, .*differ in transform",
        ),
        (Georef(), (40, 67), "no CRS and no transform.*differ in size"),
    ],
)
def test_labels_of_another_grid_are_refused_and_reproject_is_named(written, georef, shape, words):
    with pytest.raises(SourceError, match=words + ".*set reproject"):
        read(written("ids"), georef=georef, shape=shape)


@pytest.mark.parametrize("epsg", [32640, 3857, 4326])
def test_labels_of_another_grid_are_warped_to_the_nearest_pixel(raster, ids, epsg):
    spec = spec_of(raster(pixels=ids[None], name="labels.tif"), reproject=True)
    x, y = transform("EPSG:32640", f"EPSG:{epsg}", [500_000 - 3, 500_000 + 37], [2_800_000 + 3, 2_800_000 - 24])
    shape = (53, 47)
    place = ((x[1] - x[0]) / shape[1], 0.0, x[0], 0.0, (y[1] - y[0]) / shape[0], y[0])
    georef = Georef(crs_wkt=rasterio.crs.CRS.from_epsg(epsg).to_wkt(), transform=place)
    found = read(spec, Window.of_shape(shape), shape=shape, georef=georef)

    cols, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    x, y = transform(f"EPSG:{epsg}", "EPSG:32640", (place[2] + place[0] * cols).ravel(), (place[5] + place[4] * rows).ravel())
    col, row = np.floor((np.array(x) - 500_000) / 0.5).astype(int), np.floor((2_800_000 - np.array(y)) / 0.5).astype(int)
    inside = (col >= 0) & (row >= 0) & (col < SHAPE[1]) & (row < SHAPE[0])
    expected = np.full(found.size, IGNORED)
    expected[inside] = ids[row[inside], col[inside]]
    assert 0.3 < inside.mean() < 1
    assert (found.ravel() == expected).mean() > 0.999, "a centre may fall on an edge"
    part = Window(row_off=9, col_off=4, height=31, width=17)
    np.testing.assert_array_equal(read(spec, part, shape=shape, georef=georef), found[part.to_slices()])


def test_a_window_over_very_fine_labels_is_read_in_parts(raster, ids, monkeypatch):
    spec = spec_of(raster(pixels=ids[None], name="labels.tif"), reproject=True)
    georef = Georef(crs_wkt=UTM.crs_wkt, transform=(1.0, 0, 500_000, 0, -1.0, 2_800_000))
    whole = read(spec, Window.of_shape((20, 33)), shape=(20, 33), georef=georef)
    monkeypatch.setattr("workflows.label_warp._MOST_SOURCE_PX", 300)
    np.testing.assert_array_equal(read(spec, Window.of_shape((20, 33)), shape=(20, 33), georef=georef), whole)
    assert (whole != IGNORED).any()


def test_without_a_crs_on_either_side_transforms_are_enough(raster, ids):
    place = Affine(2.0, 0.0, 10.0, 0.0, -2.0, 90.0)
    spec = spec_of(raster(pixels=ids[None], name="labels.tif", crs=None, transform=place), reproject=True)
    found = read(spec, Window.of_shape((82, 134)), shape=(82, 134), georef=Georef(transform=(1.0, 0, 10, 0, -1.0, 90)))
    np.testing.assert_array_equal(found, ids.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(
    ("georef", "words"),
    [
        (Georef(), "reproject needs a transform on both sides"),
        (Georef(crs_wkt=UTM.crs_wkt, transform=(0.5, 0, 900_000, 0, -0.5, 2_800_000)), "nothing of the labels lies on the scene"),
    ],
)
def test_what_cannot_be_warped_is_refused(written, georef, words):
    with pytest.raises(SourceError, match=words):
        read(spec_of(written("ids").path, reproject=True), georef=georef, shape=(40, 40))
