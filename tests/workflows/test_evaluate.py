"""`atrous evaluate`: scikit-learn's figures on the same pixels, whatever the files are; what does not fit is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from factories import COLORS
from PIL import Image
from rasterio.transform import Affine
from sklearn import metrics as sklearn

from pipeline.errors import SourceError, SpecError, StoreError
from pipeline.georef import Georef
from pipeline.network.spec import ClassSpec
from pipeline.store import create_store, write_block
from pipeline.store_layout import StoreLayout
from pipeline.window import Window
from workflows import evaluate as job
from workflows.confusion import count_confusion
from workflows.evaluate import EvaluateRequest, Evaluation, plan_windows, run
from workflows.evaluation_pairs import Pair, pair_up
from workflows.evaluation_picture import draw_evaluation, map_room, write_picture
from workflows.evaluation_report import evaluation_lines, evaluation_to_dict
from workflows.label_reading import LabelReading, parse_values
from workflows.trimap import boundary_distance, count_trimap

IGNORED = 255
SHAPE = (101, 143)
CLASSES = ("land", "road", "water", "sand")
PLACE = Affine(0.5, 0.0, 500_000.0, 0.0, -0.5, 2_800_000.0)
UTM = Georef(crs_wkt=rasterio.crs.CRS.from_epsg(32640).to_wkt(), transform=tuple(PLACE)[:6])


def random_labels(seed: int = 0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Return rectangles of three of the four classes, with holes."""
    rng = np.random.default_rng(seed)
    small = rng.choice(np.array([0, 1, 1, 2, IGNORED], np.uint8), (shape[0] // 6 + 1, shape[1] // 6 + 1))
    return small.repeat(6, 0).repeat(6, 1)[: shape[0], : shape[1]]


def guessed(labels: np.ndarray, seed: int = 1) -> np.ndarray:
    """Return a prediction that is right for 7 of 10 pixels, with a hole of its own."""
    rng = np.random.default_rng(seed)
    predicted = np.where((rng.random(labels.shape) < 0.7) & (labels != IGNORED), labels, rng.integers(0, 3, labels.shape))
    predicted[5:25, 30:50] = IGNORED
    return predicted.astype(np.uint8)


LABELS = random_labels()
PREDICTED = guessed(LABELS)


@pytest.fixture
def write(raster):
    """Return ``write(labels, name) -> Path`` of a raster of class ids at `PLACE`."""

    def go(labels: np.ndarray, name: str, **changes: object) -> Path:
        return raster(pixels=labels[None] if labels.ndim == 2 else labels, name=name, **changes)

    return go


@pytest.fixture
def store(tmp_path):
    """Return ``make(labels, name) -> Path`` of an output of `atrous segment` with chunks of 32 px."""

    def go(labels: np.ndarray, name: str = "out.zarr", *, classes: tuple[str, ...] = CLASSES, georef: Georef = UTM) -> Path:
        path = tmp_path / name
        named = tuple(ClassSpec(name=one, color=COLORS[i]) for i, one in enumerate(classes))
        layout = StoreLayout(height=labels.shape[0], width=labels.shape[1], chunk=32, classes=named, georef=georef)
        create_store(path, layout)
        write_block(path, layout.window, {"labels": labels, "confidence": np.full_like(labels, 200)})
        return path

    return go


def evaluate(*paths: Path, **changes: object) -> Evaluation:
    return run(EvaluateRequest(pairs=pair_up(paths), **{"block_px": 16, **changes}))


def visible(labels: np.ndarray = LABELS, predicted: np.ndarray = PREDICTED) -> tuple[np.ndarray, np.ndarray]:
    """Return the true and the predicted classes of the pixels that have both."""
    both = (labels != IGNORED) & (predicted != IGNORED)
    return labels[both], predicted[both]


def coloured(labels: np.ndarray, *, nothing: str = "#000000") -> np.ndarray:
    """Return (3, height, width) in the colours of the classes."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(COLORS)] = [ClassSpec(name="x", color=color).rgb for color in COLORS]
    table[IGNORED] = ClassSpec(name="x", color=nothing).rgb
    return table[labels].transpose(2, 0, 1)


# The figures


@pytest.mark.parametrize("window_px", [17, 64, 2048])
def test_the_figures_are_those_of_scikit_learn(write, store, window_px, monkeypatch):
    monkeypatch.setattr(job, "_WINDOW_PX", window_px)
    figures = evaluate(store(PREDICTED), write(LABELS, "labels.tif")).pooled
    true, guess = visible()
    n = range(len(CLASSES))
    np.testing.assert_array_equal(figures.metrics.confusion, sklearn.confusion_matrix(true, guess, labels=n))
    for found, score in (
        (figures.metrics.iou, sklearn.jaccard_score),
        (figures.metrics.f1, sklearn.f1_score),
        (figures.metrics.precision, sklearn.precision_score),
        (figures.metrics.recall, sklearn.recall_score),
    ):
        expected = score(true, guess, labels=[0, 1, 2], average=None)
        np.testing.assert_allclose([found[name] for name in CLASSES[:3]], expected)
        assert found["sand"] is None
    assert figures.metrics.mean_iou == pytest.approx(sklearn.jaccard_score(true, guess, average="macro"))
    assert figures.metrics.frequency_weighted_iou == pytest.approx(sklearn.jaccard_score(true, guess, average="weighted"))
    assert figures.metrics.accuracy == pytest.approx(sklearn.accuracy_score(true, guess))
    counted = np.where(PREDICTED == IGNORED, IGNORED, LABELS).astype(np.uint8)
    assert figures.trimap.accuracy(4) == count_trimap(PREDICTED, counted, boundary_distance(LABELS)).accuracy(4)


def test_what_is_left_out_is_told(write, store):
    figures = evaluate(store(PREDICTED), write(LABELS, "labels.tif")).pooled
    assert figures.n_pixels == SHAPE[0] * SHAPE[1]
    assert figures.n_unlabelled == np.count_nonzero(LABELS == IGNORED)
    assert figures.n_unpredicted == np.count_nonzero((LABELS != IGNORED) & (PREDICTED == IGNORED)) > 0
    assert figures.metrics.n_pixels == figures.n_pixels - figures.n_unlabelled - figures.n_unpredicted


def test_labels_against_themselves_are_right(store):
    out = store(PREDICTED)
    figures = evaluate(out, out).pooled
    assert figures.metrics.mean_iou == figures.metrics.accuracy == figures.trimap.accuracy(4) == 1
    assert figures.intervals.mean_iou is not None
    assert (figures.intervals.mean_iou.low, figures.intervals.mean_iou.high) == (1, 1)


def test_ground_that_is_not_predicted_yet_counts_as_nodata(tmp_path, write):
    layout = StoreLayout(height=64, width=96, chunk=32, classes=(ClassSpec(name="a", color="#000000"),), georef=UTM)
    create_store(tmp_path / "half.zarr", layout)
    left = Window.of_shape((64, 32))
    write_block(tmp_path / "half.zarr", left, {"labels": np.zeros((64, 32), np.uint8), "confidence": np.ones((64, 32), np.uint8)})
    figures = evaluate(tmp_path / "half.zarr", write(np.zeros((64, 96), np.uint8), "labels.tif")).pooled
    assert (figures.metrics.n_pixels, figures.n_unpredicted) == (64 * 32, 64 * 64)


# What may be compared


def test_a_raster_of_ids_is_compared_by_the_ids_that_occur(write):
    found = evaluate(write(PREDICTED, "out.tif", nodata=255), write(LABELS, "labels.tif"))
    assert found.classes == ("0", "1", "2")
    np.testing.assert_array_equal(found.pooled.metrics.confusion, sklearn.confusion_matrix(*visible()))


def test_ids_that_occur_may_leave_gaps(write):
    ids = np.array([3, 7, 200], np.uint8)
    labels, predicted = (np.where(one == IGNORED, IGNORED, ids[np.minimum(one, 2)]) for one in (LABELS, PREDICTED))
    found = evaluate(write(predicted.astype(np.uint8), "out.tif"), write(labels.astype(np.uint8), "labels.tif"))
    assert found.classes == ("3", "7", "200")
    np.testing.assert_array_equal(found.pooled.metrics.confusion, sklearn.confusion_matrix(*visible()))
    assert found.pooled.intervals.n_blocks > 8


def test_names_may_be_given_for_a_raster(write):
    found = evaluate(write(PREDICTED, "out.tif"), write(LABELS, "labels.tif"), classes=("x", "y", "z"))
    assert found.classes == ("x", "y", "z")


def test_the_nodata_of_both_rasters_is_honoured(write):
    labels, predicted = (np.where(one == IGNORED, 99, one).astype(np.uint8) for one in (LABELS, PREDICTED))
    found = evaluate(write(predicted, "out.tif", nodata=99), write(labels, "labels.tif", nodata=99))
    np.testing.assert_array_equal(found.pooled.metrics.confusion, sklearn.confusion_matrix(*visible()))
    written = evaluate(write(predicted, "out.tif", nodata=99), write(labels, "labels.tif"), reading=LabelReading(nodata=99))
    assert written.pooled.metrics.confusion == found.pooled.metrics.confusion


def test_coloured_labels_have_the_colours_of_the_prediction_unless_others_are_given(store, write):
    out = store(PREDICTED)
    expected = evaluate(out, write(LABELS, "labels.tif")).pooled.metrics.confusion
    painted = write(coloured(LABELS), "painted.tif")
    ignoring = LabelReading(ignored_colors=("#000000",))
    assert evaluate(out, painted, reading=ignoring).pooled.metrics.confusion == expected
    swapped = LabelReading(colors=(COLORS[1], COLORS[0], *COLORS[2:4]), ignored_colors=("#000000",))
    other = evaluate(out, painted, reading=swapped).pooled.metrics.confusion
    assert other[0] == expected[1]
    assert other[1] == expected[0]


def test_the_numbers_of_a_palette_are_ids(store, write, tmp_path):
    picture = Image.fromarray(LABELS)
    picture.putpalette([value for color in COLORS[:3] for value in bytes.fromhex(color[1:])] + [0] * 3 * 253)
    picture.save(tmp_path / "labels.png")
    out = store(PREDICTED)
    expected = evaluate(out, write(LABELS, "labels.tif")).pooled.metrics.confusion
    assert evaluate(out, tmp_path / "labels.png").pooled.metrics.confusion == expected


def test_values_say_what_numbers_mean(store, write):
    shifted = np.where(LABELS == IGNORED, 0, LABELS + 1).astype(np.uint8)
    reading = LabelReading(values=parse_values(["0=ignore", "1=land", "2=road", "3=water"]))
    found = evaluate(store(PREDICTED), write(shifted, "labels.tif"), reading=reading)
    expected = evaluate(store(PREDICTED, "again.zarr"), write(LABELS, "plain.tif"))
    assert found.pooled.metrics.confusion == expected.pooled.metrics.confusion


def test_names_may_stand_for_those_of_the_output(store, write):
    found = evaluate(store(PREDICTED), write(LABELS, "labels.tif"), classes=("a", "b", "c", "d"))
    expected = evaluate(store(PREDICTED, "again.zarr"), write(LABELS, "plain.tif"))
    assert found.pooled.metrics.classes == ("a", "b", "c", "d")
    assert found.pooled.metrics.confusion == expected.pooled.metrics.confusion


def test_polygons_give_the_figures_of_the_raster_that_they_were_drawn_from(store, write, tmp_path):
    geopandas = pytest.importorskip("geopandas")
    from rasterio.features import shapes
    from shapely.geometry import shape

    found = [(shape(one), CLASSES[int(value)]) for one, value in shapes(LABELS, LABELS != IGNORED, transform=PLACE)]
    frame = geopandas.GeoDataFrame({"kind": [name for _, name in found]}, geometry=[one for one, _ in found], crs="EPSG:32640")
    frame.to_file(tmp_path / "labels.gpkg")
    out, raster = store(PREDICTED), write(LABELS, "labels.tif")
    drawn = evaluate(out, tmp_path / "labels.gpkg", reading=LabelReading(attribute="kind"))
    expected = evaluate(out, raster)
    assert drawn.pooled.metrics.confusion == expected.pooled.metrics.confusion
    assert drawn.pooled.trimap == expected.pooled.trimap


def test_labels_of_another_grid_are_brought_over_on_request(store, write):
    fine = write(LABELS.repeat(2, 0).repeat(2, 1), "fine.tif", transform=PLACE * Affine.scale(0.5))
    out = store(PREDICTED)
    with pytest.raises(SourceError, match=r"202 x 286 px.*101 x 143 px.*reproject"):
        evaluate(out, fine)
    moved = evaluate(out, fine, reading=LabelReading(reproject=True))
    assert moved.pooled.metrics.confusion == evaluate(out, write(LABELS, "labels.tif")).pooled.metrics.confusion


# Several pairs


def test_several_pairs_are_told_one_by_one_and_together(store, write):
    others = random_labels(5, (60, 70))
    predicted = guessed(others, 6)
    first, second = (store(PREDICTED), write(LABELS, "a.tif")), (store(predicted, "b.zarr"), write(others, "b.tif"))
    found = evaluate(*first, *second)
    alone = [evaluate(*pair).pooled for pair in (first, second)]
    for (pair, figures), expected in zip(found.pairs, alone, strict=True):
        assert figures == expected
        assert str(pair) == figures.metrics.scene
    true, guess = (np.concatenate(parts) for parts in zip(visible(), visible(others, predicted), strict=True))
    np.testing.assert_array_equal(found.pooled.metrics.confusion, sklearn.confusion_matrix(true, guess, labels=range(4)))
    assert found.pooled.n_pixels == sum(one.n_pixels for one in alone)
    assert found.pooled.intervals.n_blocks == sum(one.intervals.n_blocks for one in alone)
    mean = evaluation_to_dict(found)["mean_of_pairs"]
    assert mean["mean_iou"] == pytest.approx(np.mean([one.metrics.mean_iou for one in alone]), abs=1e-6)
    assert mean["iou"]["land"] == pytest.approx(np.mean([one.metrics.iou["land"] for one in alone]), abs=1e-6)
    assert mean["iou"]["sand"] is None


def test_the_mean_over_pairs_leaves_out_those_without_the_class(write):
    ones = np.ones((20, 20), np.uint8)
    found = evaluate(write(ones, "p.tif"), write(ones, "l.tif"), write(ones - 1, "q.tif"), write(ones - 1, "m.tif"))
    assert evaluation_to_dict(found)["mean_of_pairs"]["iou"] == {"0": 1.0, "1": 1.0}


def test_pairs_of_other_classes_are_refused(store, write):
    labels = write(LABELS, "labels.tif")
    pairs = (store(PREDICTED), labels, store(PREDICTED, "b.zarr", classes=("a", "b", "c")), labels)
    with pytest.raises(SpecError, match=r"land, road, water, sand.*a, b, c"):
        evaluate(*pairs)


# Bad input


def test_a_file_that_is_missing_is_told_before_anything_is_counted(store, write, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_count_pair", lambda *_: pytest.fail("counted"))
    pair = (store(PREDICTED), write(LABELS, "labels.tif"))
    with pytest.raises(SourceError, match="does not exist"):
        evaluate(*pair, pair[0], tmp_path / "none.tif")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        pytest.param({"transform": PLACE * Affine.translation(3, 0)}, "differ in transform", id="transform"),
        pytest.param({"crs": "EPSG:32639"}, "EPSG:32639.*EPSG:32640", id="CRS"),
    ],
)
def test_another_place_is_refused(store, write, change, fragment):
    with pytest.raises(SourceError, match=fragment):
        evaluate(store(PREDICTED), write(LABELS, "labels.tif", **change))


def test_an_id_that_is_no_class_is_refused(store, write):
    labels = LABELS.copy()
    labels[3, 4:9] = 17
    with pytest.raises(SourceError, match=r"17 \(5 px\)"):
        evaluate(store(PREDICTED), write(labels, "labels.tif"))
    with pytest.raises(SourceError, match=r"17 \(5 px\)"):
        evaluate(write(labels, "out.tif"), write(LABELS, "plain.tif"), classes=CLASSES)


def test_pairs_without_a_common_pixel_are_refused(store, write):
    nothing = np.full(SHAPE, IGNORED, np.uint8)
    with pytest.raises(SourceError, match=r"no pixel of out\.zarr against labels\.tif has both"):
        evaluate(store(PREDICTED), write(nothing, "labels.tif"))


def test_colours_that_nobody_knows_are_asked_for(write):
    with pytest.raises(SourceError, match=r"painted\.tif has 3 bands.*--label-colors"):
        evaluate(write(PREDICTED, "out.tif"), write(coloured(LABELS), "painted.tif"))


def test_names_that_nobody_gave_an_id_are_asked_for(write):
    reading = LabelReading(values=(("1", "water"),))
    with pytest.raises(SpecError, match=r"'water'.*--classes"):
        evaluate(write(PREDICTED, "out.tif"), write(LABELS, "labels.tif"), reading=reading)


def test_names_in_polygons_are_asked_for_where_ids_have_none(write, tmp_path):
    geopandas = pytest.importorskip("geopandas")
    from shapely.geometry import box

    frame = geopandas.GeoDataFrame({"class": ["water"]}, geometry=[box(500_000, 2_799_960, 500_050, 2_800_000)], crs="EPSG:32640")
    frame.to_file(tmp_path / "labels.gpkg")
    with pytest.raises(SourceError, match="'water'") as refused:
        evaluate(write(PREDICTED, "out.tif"), tmp_path / "labels.gpkg")
    assert len(str(refused.value)) < 500
    named = evaluate(write(PREDICTED, "out.tif"), tmp_path / "labels.gpkg", classes=CLASSES)
    assert named.pooled.metrics.tally.labelled.tolist()[2] > 0


def test_a_wrong_number_of_names_is_refused(store, write):
    with pytest.raises(SpecError, match=r"2 classes were given.*4: land"):
        evaluate(store(PREDICTED), write(LABELS, "labels.tif"), classes=("a", "b"))


@pytest.mark.parametrize(
    ("parse", "given", "fragment"),
    [
        pytest.param(pair_up, [Path("a")], "1 path", id="one path"),
        pytest.param(pair_up, [Path("a"), Path("b"), Path("c")], "3 paths", id="three paths"),
        pytest.param(parse_values, ["3"], "KEY=CLASS", id="no class"),
        pytest.param(parse_values, ["=water"], "KEY=CLASS", id="no key"),
    ],
)
def test_words_that_make_no_sense_are_refused(parse, given, fragment):
    with pytest.raises(SpecError, match=fragment):
        parse(given)


def test_a_key_may_hold_an_equals_sign():
    assert parse_values(["a=b=water"]) == (("a=b", "water"),)


# Windows


@pytest.mark.parametrize(
    ("shape", "chunk", "side"),
    [
        pytest.param((5000, 7000), (1024, 1024), (2048, 2048), id="chunks"),
        pytest.param((5000, 36_000), (1, 36_000), (116, 36_000), id="rows"),
        pytest.param((5000, 7000), (3000, 3000), (3000, 3000), id="large chunks"),
        pytest.param((500, 700), (512, 512), (500, 700), id="one window"),
    ],
)
def test_windows_are_whole_chunks_and_cover_the_scene_once(shape, chunk, side):
    windows = list(plan_windows(shape, chunk))
    assert windows[0].shape == side
    assert sum(window.n_pixels for window in windows) == shape[0] * shape[1]
    assert windows == sorted(windows)
    assert {window.row_off % chunk[0] for window in windows} | {window.col_off % chunk[1] for window in windows} == {0}


def test_progress_ends_with_all_pixels(store, write, monkeypatch):
    monkeypatch.setattr(job, "_WINDOW_PX", 64)
    seen: list[tuple[int, int]] = []
    request = EvaluateRequest(pairs=pair_up([store(PREDICTED), write(LABELS, "labels.tif")]))
    run(request, lambda done, total: seen.append((done, total)))
    assert len(seen) == 6
    assert seen[-1] == (SHAPE[0] * SHAPE[1],) * 2


# Reports


@pytest.fixture
def found(store, write):
    """Return an evaluation with an error map."""
    pair = Pair(prediction=store(PREDICTED), labels=write(LABELS, "labels.tif"))
    return run(EvaluateRequest(pairs=(pair,), block_px=16, map_px=map_room(1)))


def test_the_table_has_a_line_for_each_class_and_says_what_was_left_out(found):
    text = "\n".join(evaluation_lines(found))
    metrics = found.pooled.metrics
    for name in CLASSES[:3]:
        assert f"{metrics.iou[name]:.4f}" in text
    assert f"counted {metrics.n_pixels:,} of {SHAPE[0] * SHAPE[1]:,} px" in text
    assert re.search(f"^mean +{metrics.mean_iou:.4f} ", text, flags=re.MULTILINE)
    assert "within 4 px of a boundary" in text
    assert "blocks of 16 px in all" in text


def test_json_has_everything(found):
    told = json.loads(json.dumps(evaluation_to_dict(found)))
    assert set(told) == {"classes", "pairs", "all", "mean_of_pairs", "trimap_px", "seconds"}
    assert set(told["all"]) == {
        *("name", "mean_iou", "mean_iou_95", "frequency_weighted_iou", "accuracy", "trimap_accuracy", "trimap_curve"),
        *("by_class", "confusion", "n_pixels", "n_counted", "n_unlabelled", "n_unpredicted", "n_blocks"),
    }
    assert set(told["pairs"][0]) == {*told["all"], "prediction", "labels", "block_px"}
    assert set(told["all"]["by_class"]["land"]) == {*("iou", "iou_95", "f1", "precision", "recall", "n_labelled", "n_predicted")}
    assert told["all"]["by_class"]["sand"]["iou"] is None
    np.testing.assert_array_equal(told["all"]["confusion"], count_confusion(*visible(), n_classes=4))


def test_the_error_map_is_red_where_the_prediction_is_wrong(found):
    seen = (LABELS != IGNORED) & (PREDICTED != IGNORED)
    wrong = found.maps[0].wrong
    assert found.maps[0].cell_px == 1
    np.testing.assert_array_equal(wrong == IGNORED, ~seen)
    np.testing.assert_array_equal(wrong == job.MOST_WRONG, seen & (LABELS != PREDICTED))


def test_the_picture_shows_each_pixel_of_a_small_scene(found, tmp_path):
    image = draw_evaluation(found)
    colors = {color for _, color in image.getcolors(2**20) or ()}
    assert {(205, 222, 236), (196, 30, 30)} <= colors
    write_picture(found, tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as stored:
        assert stored.size == image.size
        assert max(stored.size) <= 1600


def test_a_picture_of_many_classes_and_pairs_is_no_larger(write):
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(11):
        labels = rng.integers(0, 30, (40 + i, 90), dtype=np.uint8)
        pairs += [write(labels, f"p{i}.tif"), write(labels, f"l{i}.tif")]
    found = run(EvaluateRequest(pairs=pair_up(pairs), map_px=map_room(11)))
    assert len(found.maps) == 9
    assert max(draw_evaluation(found).size) <= 1600
    assert "the matrix of 30 classes is in --json and --png" in evaluation_lines(found)


def test_a_picture_that_cannot_be_written_leaves_nothing(found, tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        write_picture(found, tmp_path / "none" / "found.png")


# The command


def test_the_command_prints_a_table_or_json_and_draws(atrous, store, write, tmp_path):
    pair = store(PREDICTED), write(LABELS, "labels.tif")
    code, stdout, stderr = atrous("evaluate", *pair, "--png", tmp_path / "found.png", "--block", "16")
    assert (code, stderr) == (0, "")
    assert stdout.startswith("out.zarr against labels.tif\n")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    code, stdout, _ = atrous("evaluate", *pair, "--json", "--trimap", "2")
    told = json.loads(stdout)
    assert (code, told["trimap_px"], told["classes"]) == (0, 2, list(CLASSES))


def test_the_options_of_the_command_reach_the_labels(atrous, store, write, tmp_path):
    painted = write(coloured(LABELS, nothing="#111111"), "painted.tif")
    colors = ",".join(COLORS[:4])
    out = store(PREDICTED)
    words = ("evaluate", out, painted, "--label-colors", colors, "--ignored-colors", "#111111", "--json")
    assert json.loads(atrous(*words)[1])["all"]["n_counted"] == len(visible()[0])
    ids = write(LABELS, "labels.tif")
    values = [word for text in ("0=land", "1=road", "2=ignore", "255=ignore") for word in ("--values", text)]
    told = json.loads(atrous("evaluate", out, ids, *values, "--json")[1])
    assert told["all"]["by_class"]["water"]["n_labelled"] == 0
    told = json.loads(atrous("evaluate", out, ids, "--nodata", "1", "--values", "0=land", *values[4:], "--json")[1])
    assert told["all"]["by_class"]["road"]["n_labelled"] == 0


@pytest.mark.parametrize(
    ("options", "code", "fragment"),
    [
        pytest.param(("--trimap", "40"), 2, "40 px", id="trimap"),
        pytest.param(("--block", "0"), 2, "0 px", id="block"),
        pytest.param(("--values", "3"), 2, "KEY=CLASS", id="values"),
        pytest.param(("--outside", "moon"), 2, "'moon'", id="outside"),
        pytest.param(("--png", "none/found.png"), 73, "does not exist", id="picture"),
    ],
)
def test_settings_that_are_wrong_are_one_line(atrous, store, write, options, code, fragment):
    found = atrous("evaluate", store(PREDICTED), write(LABELS, "labels.tif"), *options)
    assert (found[0], found[1]) == (code, "")
    assert found[2].startswith("error: ")
    assert found[2].count("\n") == 1
    assert fragment in found[2]


def test_bad_input_is_65(atrous, store, tmp_path):
    code, stdout, stderr = atrous("evaluate", store(PREDICTED), tmp_path / "none.tif")
    assert (code, stdout) == (65, "")
    assert "does not exist" in stderr
