"""Polygons are burnt in as GDAL burns them, window by window, whatever file they come from; and what does not fit is refused."""

import sys
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from rasterio.features import rasterize, shapes
from rasterio.transform import Affine
from rasterio.warp import transform

from pipeline.errors import MissingDependencyError, SourceError
from pipeline.georef import Georef
from pipeline.window import Window
from workflows import polygons
from workflows.label_source import IGNORED, LabelSpec, open_labels
from workflows.memory_scene import MemoryAllowance

CLASSES = ("land", "road", "water")
SHAPE = (41, 67)
PLACE = (0.5, 0.0, 500_000.0, 0.0, -0.5, 2_800_000.0)
UTM = Georef(crs_wkt=rasterio.crs.CRS.from_epsg(32640).to_wkt(), transform=PLACE)
WHOLE = Window.of_shape(SHAPE)
SUFFIXES = [".gpkg", ".geojson", ".shp", ".parquet"]


def shapes_of(seed: int = 0, *, n: int = 30) -> geopandas.GeoDataFrame:
    """Overlapping triangles, circles and a ring on the scene, some partly outside it."""
    rng = np.random.default_rng(seed)
    parts = []
    for kind in rng.integers(2, size=n):
        x, y = 500_000 + rng.uniform(-2, 36), 2_800_000 - rng.uniform(-2, 23)
        circle = shapely.Point(x, y).buffer(rng.uniform(0.5, 4))
        parts.append(circle if kind else shapely.Polygon([(x, y), (x + rng.uniform(2, 6), y), (x, y - rng.uniform(2, 6))]))
    parts[3] = shapely.Point(500_010, 2_799_990).buffer(6).difference(shapely.Point(500_010, 2_799_990).buffer(3))
    parts[4] = shapely.MultiPolygon(
        [shapely.box(500_001, 2_799_981, 500_004, 2_799_984), shapely.box(500_030, 2_799_995, 500_033, 2_799_999)]
    )
    names = rng.choice(CLASSES, n)
    return geopandas.GeoDataFrame(
        {"kind": names, "class": [str(CLASSES.index(name)) for name in names]}, geometry=parts, crs="EPSG:32640"
    )


def write(frame: geopandas.GeoDataFrame, path: Path, **options: object) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")
            frame.to_file(path, **options)
    return path


def spec_of(path: Path, **changes: object) -> LabelSpec:
    return LabelSpec(**{"path": path, "classes": CLASSES, **changes})  # type: ignore[arg-type]


def read(spec: LabelSpec, window: Window = WHOLE, *, georef: Georef = UTM, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    with open_labels(spec, shape=shape, georef=georef) as labels:
        assert labels.shape == shape
        return labels.read(window)


def burnt(frame: geopandas.GeoDataFrame, *, fill: int = IGNORED, all_touched: bool = False) -> np.ndarray:
    pairs = [(part, CLASSES.index(kind)) for part, kind in zip(frame.geometry, frame["kind"], strict=True)]
    return rasterize(pairs, out_shape=SHAPE, transform=Affine(*PLACE), fill=fill, all_touched=all_touched, dtype="uint8")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_gives_what_gdal_burns_in(tmp_path, suffix):
    frame = shapes_of()
    spec = spec_of(write(frame, tmp_path / f"labels{suffix}"), attribute="kind")
    expected = burnt(frame)
    assert set(np.unique(expected)) == {0, 1, 2, IGNORED}
    np.testing.assert_array_equal(read(spec), expected)


@pytest.mark.parametrize("all_touched", [False, True])
def test_windows_are_parts_of_the_whole(tmp_path, all_touched):
    frame = shapes_of()
    spec = spec_of(write(frame, tmp_path / "labels.gpkg"), attribute="kind", outside="land", all_touched=all_touched)
    expected = burnt(frame, fill=0, all_touched=all_touched)
    with open_labels(spec, shape=SHAPE, georef=UTM) as labels:
        for row in range(0, SHAPE[0], 7):
            for col in range(0, SHAPE[1], 11):
                window = Window(row_off=row, col_off=col, height=7, width=11).clip(SHAPE)
                assert window is not None
                np.testing.assert_array_equal(labels.read(window), expected[window.to_slices()])


def test_long_polygons_are_clipped_to_the_window_without_a_difference(tmp_path, monkeypatch):
    frame = shapes_of()
    spec = spec_of(write(frame, tmp_path / "labels.gpkg"), attribute="kind")
    monkeypatch.setattr(polygons, "_LONG", 2)
    windows = [Window(row_off=row, col_off=col, height=5, width=9) for row in range(0, 36, 5) for col in range(0, 58, 9)]
    for window in windows:
        np.testing.assert_array_equal(read(spec, window), burnt(frame)[window.to_slices()])


def test_the_polygons_of_a_raster_give_it_back(tmp_path):
    ids = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
    parts = [(shapely.geometry.shape(geometry), int(value)) for geometry, value in shapes(ids, transform=Affine(*PLACE))]
    frame = geopandas.GeoDataFrame(
        {"class": [value for _, value in parts]}, geometry=[part for part, _ in parts], crs="EPSG:32640"
    )
    path = write(frame, tmp_path / "labels.gpkg")
    np.testing.assert_array_equal(read(spec_of(path)), ids)


def test_ground_without_a_polygon_is_what_the_settings_say(tmp_path):
    path = write(shapes_of(), tmp_path / "labels.gpkg")
    empty = read(spec_of(path, attribute="kind")) == IGNORED
    assert (read(spec_of(path, attribute="kind", outside="water"))[empty] == 2).all()


def test_without_an_attribute_the_column_class_counts_by_ids_or_names(tmp_path):
    frame = shapes_of()
    by_id = read(spec_of(write(frame, tmp_path / "a.gpkg")))
    frame["class"] = frame["kind"]
    by_name = read(spec_of(write(frame, tmp_path / "b.gpkg")))
    np.testing.assert_array_equal(by_id, by_name)
    np.testing.assert_array_equal(by_id, burnt(frame))


@pytest.mark.parametrize(("classes", "outside"), [(("road",), "ignore"), (("land", "road"), "land")])
def test_polygons_of_one_class_need_no_attribute(tmp_path, classes, outside):
    frame = shapes_of()[["geometry"]]
    found = read(spec_of(write(frame, tmp_path / "labels.gpkg"), classes=classes, outside=outside))
    covered = burnt(frame.assign(kind="road")) != IGNORED
    np.testing.assert_array_equal(found, np.where(covered, classes.index("road"), IGNORED if outside == "ignore" else 0))


def test_values_say_which_class_is_meant_and_numbers_are_written_whole(tmp_path):
    frame = shapes_of()
    frame["code"] = [None if kind == "water" else float(CLASSES.index(kind) + 10) for kind in frame["kind"]]
    spec = spec_of(write(frame, tmp_path / "labels.gpkg"), attribute="code", values={"10": "land", "11": "road", "": "ignore"})
    expected = burnt(frame)
    np.testing.assert_array_equal(read(spec), np.where(expected == 2, IGNORED, expected))


def test_a_column_with_gaps_is_read_as_whole_numbers(tmp_path):
    frame = shapes_of()
    frame["code"] = pd.array([None if kind == "water" else CLASSES.index(kind) for kind in frame["kind"]], dtype="Int64")
    path = write(frame, tmp_path / "labels.parquet")
    with pytest.raises(SourceError, match=r"values that are no class: '' \(\d+\)"):
        read(spec_of(path, attribute="code"))
    found = read(spec_of(path, attribute="code", values={"0": "land", "1": "road", "": "ignore"}))
    assert set(np.unique(found)) == {0, 1, IGNORED}


def test_a_layer_is_chosen_by_name(tmp_path):
    write(shapes_of(), tmp_path / "labels.gpkg", layer="first")
    second = shapes_of(5)
    write(second, tmp_path / "labels.gpkg", layer="second")
    np.testing.assert_array_equal(read(spec_of(tmp_path / "labels.gpkg", attribute="kind", layer="second")), burnt(second))
    with pytest.raises(SourceError, match="has the layers 'first', 'second', and no layer was named; set layer"):
        read(spec_of(tmp_path / "labels.gpkg", attribute="kind"))
    with pytest.raises(SourceError, match="the layer 'third' was named"):
        read(spec_of(tmp_path / "labels.gpkg", attribute="kind", layer="third"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attribute": "colour"}, "has the attributes 'kind', and the attribute 'colour' was named; set attribute"),
        ({}, "has the attributes 'kind', and no attribute was named"),
        (
            {"attribute": "kind", "classes": ("land", "road")},
            r"'kind' of .* values that are no class: 'water' \(\d+\); known are '0', .*'land'",
        ),
        ({"attribute": "kind", "values": {"land": "land"}}, r"'road' \(\d+\)"),
    ],
)
def test_attributes_and_values_that_are_not_known_are_named(tmp_path, changes, words):
    path = write(shapes_of()[["kind", "geometry"]], tmp_path / "labels.gpkg")
    with pytest.raises(SourceError, match=words):
        read(spec_of(path, **changes))


def test_a_table_without_geometries_is_refused(tmp_path):
    pyogrio = pytest.importorskip("pyogrio")
    pyogrio.write_dataframe(shapes_of()[["kind"]], tmp_path / "table.gpkg")
    with pytest.raises(SourceError, match="has no geometries"):
        read(spec_of(tmp_path / "table.gpkg", attribute="kind"))


def test_geometries_may_have_any_name(tmp_path):
    frame = shapes_of()
    path = write(frame.rename_geometry("outline"), tmp_path / "labels.parquet")
    np.testing.assert_array_equal(read(spec_of(path, attribute="kind")), burnt(frame))


# Places


def test_geojson_is_longitude_and_latitude_and_comes_to_the_scene_unasked(tmp_path):
    frame = shapes_of()
    path = write(frame.to_crs(4326), tmp_path / "labels.geojson", COORDINATE_PRECISION=12)
    assert (read(spec_of(path, attribute="kind")) == burnt(frame)).mean() > 0.999


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".parquet"])
def test_another_crs_is_refused_or_transformed_on_request(tmp_path, suffix):
    frame = shapes_of()
    spec = spec_of(write(frame.to_crs(3857), tmp_path / f"labels{suffix}"), attribute="kind")
    with pytest.raises(SourceError, match="has EPSG:3857, and the scene EPSG:32640; set reproject"):
        read(spec)
    found = read(spec_of(spec.path, attribute="kind", reproject=True))
    assert (found == burnt(frame)).mean() > 0.999


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".parquet"])
def test_a_crs_on_one_side_only_is_refused_unless_the_user_vouches_for_it(tmp_path, suffix):
    frame = shapes_of()
    bare = spec_of(write(frame.set_crs(None, allow_override=True), tmp_path / f"bare{suffix}"), attribute="kind")
    with pytest.raises(
        SourceError, match=r"has no CRS, and the scene EPSG:32640; .* or set reproject if their coordinates are the same"
    ):
        read(bare)
    full = spec_of(write(frame, tmp_path / f"full{suffix}"), attribute="kind")
    with pytest.raises(SourceError, match="has EPSG:32640, and the scene no CRS"):
        read(full, georef=Georef(transform=PLACE))
    for spec, georef in ((bare, UTM), (full, Georef(transform=PLACE))):
        vouched = spec_of(spec.path, attribute="kind", reproject=True)
        np.testing.assert_array_equal(read(vouched, georef=georef), burnt(frame))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_in_a_scene_without_a_place_polygons_are_in_pixels(tmp_path, suffix):
    frame = shapes_of()
    frame = frame.set_geometry(shapely.transform(frame.geometry.to_numpy(), lambda xy: (xy - (500_000, 2_800_000)) / (0.5, -0.5)))
    frame = frame.set_crs(None, allow_override=True)
    found = read(spec_of(write(frame, tmp_path / f"labels{suffix}"), attribute="kind"), georef=Georef())
    assert (found == burnt(shapes_of())).mean() > 0.999


def test_a_rotated_scene_is_no_special_case(tmp_path):
    frame = shapes_of()
    turned = tuple(Affine(*PLACE) @ Affine.rotation(30))[:6]
    found = read(
        spec_of(write(frame, tmp_path / "labels.gpkg"), attribute="kind"), georef=Georef(crs_wkt=UTM.crs_wkt, transform=turned)
    )
    pairs = [(part, CLASSES.index(kind)) for part, kind in zip(frame.geometry, frame["kind"], strict=True)]
    expected = rasterize(pairs, out_shape=SHAPE, transform=Affine(*turned), fill=IGNORED, dtype="uint8")
    assert (found == expected).mean() > 0.999


def test_polygons_that_all_lie_outside_are_refused_with_both_extents(tmp_path):
    far = shapes_of().translate(xoff=5_000)
    path = write(geopandas.GeoDataFrame({"kind": "road"}, index=far.index, geometry=far), tmp_path / "labels.gpkg")
    with pytest.raises(
        SourceError, match=r"none of the 30 polygons .* columns \d{4,5} to \d{5} .* it has columns 0 to 67 and rows 0 to 41"
    ):
        read(spec_of(path, attribute="kind"))


# Files


def test_lines_and_points_are_no_polygons(tmp_path):
    frame = geopandas.GeoDataFrame({"kind": ["road"]}, geometry=[shapely.LineString([(0, 0), (9, 9)])], crs="EPSG:32640")
    with pytest.raises(SourceError, match="holds 1 LineString; polygons are expected"):
        read(spec_of(write(frame, tmp_path / "labels.gpkg"), attribute="kind"))


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".json"])
def test_a_file_that_is_not_what_its_name_says_is_refused_unread(tmp_path, suffix):
    path = tmp_path / f"labels{suffix}"
    path.write_text(
        "<OGRVRTDataSource><OGRVRTLayer name='a'><SrcDataSource>/etc</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"
    )
    with pytest.raises(SourceError, match=f"does not begin as a {suffix} file does"):
        read(spec_of(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_cut_short_is_named(tmp_path, suffix):
    path = write(shapes_of(), tmp_path / f"labels{suffix}")
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(SourceError, match=path.name):
        read(spec_of(path, attribute="kind"))


def test_a_missing_file_a_folder_and_an_address_are_refused(tmp_path):
    (tmp_path / "folder.gpkg").mkdir()
    for path, words in (
        (tmp_path / "no.gpkg", "does not exist"),
        (tmp_path / "folder.gpkg", "is a folder"),
        ("/vsizip/a.shp", "only local"),
    ):
        with pytest.raises(SourceError, match=words):
            read(spec_of(Path(path)))


def test_without_geopandas_the_way_to_install_it_is_named(tmp_path, monkeypatch):
    path = write(shapes_of(), tmp_path / "labels.gpkg")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'atrous\[polygons\]'"):
        read(spec_of(path))


def test_rasters_do_not_load_geopandas():
    import subprocess

    code = "import workflows.label_source, sys; print('geopandas' in sys.modules or 'shapely' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(polygons.__file__).parents[1]
    )
    assert done.stdout.strip() == "False"


def test_a_file_that_serves_many_scenes_is_read_once(tmp_path, monkeypatch):
    frame = shapes_of()
    spec = spec_of(write(frame, tmp_path / "labels.gpkg"), attribute="kind")
    allowance = MemoryAllowance()
    for col in (0, 30):
        georef = UTM.for_window(Window(row_off=0, col_off=col, height=41, width=37))
        with open_labels(spec, shape=(41, 37), georef=georef, allowance=allowance) as labels:
            np.testing.assert_array_equal(labels.read(Window.of_shape((41, 37))), burnt(frame)[:, col : col + 37])
        spec.path.unlink(missing_ok=True)


def test_no_polygon_is_lost_where_longitudes_turn_around(tmp_path):
    """A scene over the antimeridian, of which bounds in longitude say nothing."""
    crs = rasterio.crs.CRS.from_epsg(32601)
    x, y = (one[0] for one in transform("EPSG:4326", crs, [180.0], [52.0]))
    georef = Georef(crs_wkt=crs.to_wkt(), transform=(100.0, 0, x - 2000, 0, -100.0, y + 2000))
    boxes = [shapely.box(x + at, y - 500, x + at + 900, y + 500) for at in (-1950, 1050)]
    frame = geopandas.GeoDataFrame({"class": ["road", "water"]}, geometry=boxes, crs=crs.to_wkt()).to_crs(4326)
    assert frame.total_bounds[2] - frame.total_bounds[0] > 359
    found = read(
        spec_of(write(frame, tmp_path / "labels.gpkg"), reproject=True), Window.of_shape((40, 40)), georef=georef, shape=(40, 40)
    )
    assert [int((found == k).sum()) for k in (1, 2)] == pytest.approx([90, 90], abs=10)


def test_of_many_polygons_only_those_nearby_are_transformed(tmp_path):
    frame = shapes_of()
    far = [frame.translate(xoff=2_000.0 * step) for step in range(1, 4)]
    wide = pd.concat([frame, *(frame.set_geometry(one) for one in far)], ignore_index=True).to_crs(3857)
    file = polygons.read_polygons(spec_of(write(wide, tmp_path / "labels.gpkg"), attribute="kind", reproject=True))
    near = polygons._near(file.polygons, "transform", shape=SHAPE, georef=UTM)
    assert near.tolist() == list(range(30))
