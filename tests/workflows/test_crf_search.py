"""The CRF search: labels that one CRF of the grid made must lead back to it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import rasterio
from factories import COLORS
from PIL import Image
from safetensors.numpy import load_file

from pipeline.crf.energy import CrfSpec
from pipeline.errors import SourceError, SpecError, StoreError, WeightsError
from pipeline.network.checkpoint import load_network
from pipeline.network.model_file import read_model_spec
from pipeline.store import read_array, read_labels
from pipeline.window import Window
from workflows import segment_scene
from workflows.confusion import count_confusion
from workflows.crf_grid import CrfGrid
from workflows.crf_search import SearchRequest, run
from workflows.crf_search_report import search_lines, search_to_dict, write_search_chart
from workflows.keep_crf import check_target, keep_best
from workflows.label_reading import LabelReading
from workflows.labelled_store import StoreAndLabels
from workflows.refinement import Refinement

HEIGHT, WIDTH = 70, 100
SCENE = Window.of_shape((HEIGHT, WIDTH))
BASE = CrfSpec(theta_alpha=8, theta_beta=20, theta_gamma=2, n_steps=3, tile_px=40)
GRID = CrfGrid(w_appearance=(4,), theta_alpha=(4, 8), theta_beta=(10, 40))
TRUTH = GRID.specs(BASE)[2]
N_TILES = 6
N_NODATA = 9 * 31


@pytest.fixture
def scene(raster):
    return raster(height=HEIGHT, width=WIDTH, nodata=0, holes=((10, 20, 9, 31),))


@pytest.fixture
def store(stored, scene):
    return stored(scene)


@pytest.fixture
def truth(store, execution, tmp_path):
    """Return the labels that one CRF of the grid gives, 255 at nodata."""
    out = tmp_path / "truth.zarr"
    segment_scene.refine(Refinement(store=store, crf=TRUTH), out, execution())
    return read_labels(out, SCENE)


@pytest.fixture
def write(tmp_path):
    """Return ``write(labels, name) -> Path`` of a label raster with class ids."""

    def go(labels, name="labels.tif"):
        path = tmp_path / name
        with rasterio.open(
            path, "w", driver="GTiff", count=1, height=len(labels), width=labels.shape[1], dtype="uint8"
        ) as target:
            target.write(labels[None])
        return path

    return go


def search(*pairs, base=BASE, grid=GRID, on_progress=None, **changes):
    sources = tuple(StoreAndLabels(store=store, labels=labels) for store, labels in pairs)
    return run(SearchRequest(sources=sources, base=base, grid=grid, **changes), on_progress)


# What is found


def test_labels_that_a_crf_of_the_grid_made_lead_back_to_it(store, truth, write):
    report = search((store, write(truth)))
    assert report.best.crf == TRUTH
    assert report.best.metrics.mean_iou == report.best.metrics.accuracy == report.best.trimap.accuracy(4) == 1.0
    assert report.improved
    assert [row.crf for row in report.rows] == GRID.specs(BASE)
    assert all(row.metrics.mean_iou < 1 for row in report.rows if row.crf != TRUTH)


def test_the_first_row_is_the_network_alone(store, truth, write):
    report = search((store, write(truth)))
    expected = count_confusion(truth, read_labels(store, SCENE), n_classes=3)
    assert report.network.crf is None
    np.testing.assert_array_equal(report.network.metrics.confusion, expected)


def test_the_network_alone_is_read_off_the_probabilities_where_the_store_was_refined(stored, scene, write):
    refined = stored(scene, "refined.zarr", crf=BASE)
    stored_probabilities = read_array(refined, "probabilities", SCENE)
    truth = read_labels(refined, SCENE)
    report = search((refined, write(truth)))
    expected = count_confusion(truth, stored_probabilities.argmax(axis=0), n_classes=3)
    np.testing.assert_array_equal(report.network.metrics.confusion, expected)
    assert report.network.metrics.mean_iou < 1


def test_every_labelled_pixel_with_data_counts_once(store, write):
    labels = np.ones((HEIGHT, WIDTH), np.uint8)
    labels[:20, :50] = 255
    labels[50:, 30:] = 2
    report = search((store, write(labels)), trimap_px=32)
    n_hole_labelled = 9 * 1  # columns 50 of the hole; the others lie where nothing is labelled
    assert (report.n_tiles, report.n_tiles_labelled) == (N_TILES, N_TILES)
    for row in (report.network, *report.rows):
        assert sum(map(sum, row.metrics.confusion)) == HEIGHT * WIDTH - 20 * 50 - n_hole_labelled
        assert 0 < sum(row.trimap.n_pixels) < HEIGHT * WIDTH
        assert row.trimap.n_pixels == report.network.trimap.n_pixels


def test_nothing_beats_a_network_that_is_right(store, write):
    report = search((store, write(read_labels(store, SCENE))))
    assert report.network.metrics.mean_iou == 1.0
    assert not report.improved
    assert "no CRF of the grid beats the network alone: mIoU 1.0000" in search_lines(report)[-1]


def test_a_second_round_is_finer_and_repeats_nothing(store, truth, write):
    steps = []
    report = search((store, write(truth)), n_rounds=2, on_progress=lambda done, total: steps.append((done, total)))
    tried = [row.crf for row in report.rows]
    assert tried[: len(GRID.specs(BASE))] == GRID.specs(BASE)
    assert set(tried[len(GRID.specs(BASE)) :]) == set(GRID.around(TRUTH).specs(BASE)) - set(GRID.specs(BASE))
    assert len(tried) == len(set(tried))
    assert steps[-1][0] == steps[-1][1]
    assert len(steps) == N_TILES * (1 + len(tried))


def test_the_pixels_of_several_stores_are_pooled(store, stored, raster, truth, write):
    other = stored(raster(height=50, width=60, seed=5, name="other.tif"), "other.zarr")
    labels = write(np.ones((50, 60), np.uint8), "other-labels.tif")
    one, two, both = search((store, write(truth))), search((other, labels)), search((store, write(truth)), (other, labels))
    for left, right, sums in zip(one.rows, two.rows, both.rows, strict=True):
        np.testing.assert_array_equal(np.add(left.metrics.confusion, right.metrics.confusion), sums.metrics.confusion)
        assert left.trimap + right.trimap == sums.trimap
    assert both.sources == ("first.zarr", "other.zarr")


def test_a_part_of_the_tiles_is_spread_evenly(store, truth, write):
    report = search((store, write(truth)), max_pixels=2 * BASE.tile_px**2)
    assert (report.n_tiles, report.n_tiles_labelled) == (2, N_TILES)
    # of the six tiles in reading order, the second and the fifth
    middle = truth[:, 40:80]
    assert sum(map(sum, report.network.metrics.confusion)) == (middle != 255).sum()


def test_tiles_without_labels_are_left_out(store, truth, write):
    truth[:40, :40] = 255
    assert search((store, write(truth))).n_tiles == N_TILES - 1


@pytest.mark.parametrize("given", [(), COLORS[3:6]], ids=["as the model draws them", "others"])
def test_labels_may_be_painted(store, truth, write, tmp_path, given):
    colors = given or COLORS[:3]
    palette = np.zeros((256, 3), np.uint8)
    palette[255] = (1, 2, 3)
    palette[:3] = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors]
    path = tmp_path / "painted.png"
    Image.fromarray(palette[truth]).save(path)
    report = search((store, path), reading=LabelReading(colors=given or None, ignored_colors=("#010203",)))
    assert report.rows == search((store, write(truth))).rows


def test_numbers_may_mean_other_classes(store, truth, write, model):
    names = [one.name for one in read_model_spec(model).classes]
    shifted = np.where(truth == 255, 0, truth + 1).astype(np.uint8)
    values = (("0", "ignore"), *((str(index + 1), name) for index, name in enumerate(names)))
    report = search((store, write(shifted, "shifted.tif")), reading=LabelReading(values=values))
    assert report.rows == search((store, write(truth))).rows


# What is refused


def test_labels_of_another_size(store, write):
    with pytest.raises(SourceError, match=r"has 9 x 8 px, .* the scene 70 x 100 px"):
        search((store, write(np.zeros((9, 8), np.uint8))))


def test_labels_of_a_class_that_the_model_lacks(store, write):
    with pytest.raises(SourceError, match=r"neither a class nor ignored: 7 \(7000 px\)"):
        search((store, write(np.full((HEIGHT, WIDTH), 7, np.uint8))))


def test_labels_without_a_label(store, write):
    with pytest.raises(SourceError, match="no pixel of the labels has a class"):
        search((store, write(np.full((HEIGHT, WIDTH), 255, np.uint8))))


def test_colours_that_are_not_one_per_class(store, write, truth):
    with pytest.raises(SpecError, match="2 label colours were given; there are 3 classes"):
        search((store, write(truth)), reading=LabelReading(colors=COLORS[:2]))


def test_stores_of_two_models(store, stored, scene, other_model, truth, write):
    other = stored(scene, "other.zarr", model=str(other_model))
    with pytest.raises(SpecError, match="made by 2 models"):
        search((store, write(truth)), (other, write(truth)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_rounds": 0}, "n_rounds = 0"),
        ({"trimap_px": 33}, "trimap_px = 33"),
        ({"max_pixels": 0}, "a search on 0 px"),
    ],
)
def test_requests_that_make_no_sense(tmp_path, changes, message):
    with pytest.raises(SpecError, match=message):
        search((tmp_path, tmp_path), **changes)


def test_a_search_on_nothing():
    with pytest.raises(SpecError, match="no store was given"):
        search()


# What is told


def test_the_table_has_the_network_on_top_and_the_best_below(store, truth, write):
    lines = search_lines(search((store, write(truth)), trimap_px=3))
    assert lines[0] == f"6 of 6 labelled CRF tiles of first.zarr: {(truth != 255).sum() / 1e6:.2f} Mpx with labels"
    assert lines[2].split() == ["w_appearance", "theta_alpha", "theta_beta", "mIoU", "right", "<=", "3", "px"]
    assert lines[3].startswith(" network alone")
    assert lines[4].split()[:3] == ["4", "8", "10"]
    assert lines[4].split()[3:] == ["1.0000"] * 3
    assert lines[-1].startswith("best: w_appearance 4, theta_alpha 8, theta_beta 10; mIoU 0.")


def test_the_report_is_json(store, truth, write):
    found = json.loads(json.dumps(search_to_dict(search((store, write(truth))))))
    assert found["improved"] is True
    assert found["best"]["crf"]["theta_alpha"] == 8.0
    assert len(found["rows"]) == 4
    assert len(found["network"]["trimap_curve"]) == 32
    assert found["n_pixels"] == HEIGHT * WIDTH - N_NODATA


def test_the_chart_has_a_panel_for_each_axis_that_varies_and_one_for_boundaries(store, truth, write, tmp_path):
    report = search((store, write(truth)))
    write_search_chart(report, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.format == "PNG"
        assert image.width > 2 * image.height
    with pytest.raises(StoreError, match="cannot be written"):
        write_search_chart(report, tmp_path / "missing" / "chart.png")


# What the model remembers


@pytest.fixture
def report(store, truth, write):
    return search((store, write(truth)))


def tensor_bytes(path) -> bytes:
    """Return what follows the header, as it lies in the file."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_a_copy_of_the_model_gets_the_best_crf_and_the_same_weights(report, model, tmp_path):
    before = model.read_bytes()
    copy = tmp_path / "tuned.safetensors"
    assert keep_best(report, copy)
    assert model.read_bytes() == before
    assert tensor_bytes(copy) == tensor_bytes(model)
    spec = read_model_spec(copy)
    assert spec.crf == TRUTH
    assert spec.provenance["crf_search"]["best"]["mean_iou"] == 1.0
    assert spec.provenance["crf_search"]["stores"] == ["first.zarr"]
    load_network(copy)
    assert {name: array.tobytes() for name, array in load_file(copy).items()} == {
        name: array.tobytes() for name, array in load_file(model).items()
    }


def test_a_model_may_be_changed_in_place_and_again(report, model, tmp_path):
    own = tmp_path / "own.safetensors"
    own.write_bytes(model.read_bytes())
    assert keep_best(report, own)
    once = own.read_bytes()
    assert keep_best(report, own)
    assert own.read_bytes() == once
    assert tensor_bytes(own) == tensor_bytes(model)


def test_a_crash_while_writing_leaves_the_model_as_it_was(report, model, tmp_path, monkeypatch):
    own = tmp_path / "own.safetensors"
    own.write_bytes(model.read_bytes())

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(StoreError, match="cannot be written"):
        keep_best(report, own)
    assert own.read_bytes() == model.read_bytes()
    assert [path.name for path in tmp_path.glob("own*")] == ["own.safetensors"]


def test_another_model_is_refused(report, tiny_model, tmp_path):
    other = tiny_model(n_classes=4, name="other")
    before = other.read_bytes()
    with pytest.raises(WeightsError, match="is another model than"):
        keep_best(report, other)
    assert other.read_bytes() == before


def test_a_crf_that_is_worse_than_none_is_kept_only_by_force(store, write, tmp_path):
    report = search((store, write(read_labels(store, SCENE))))
    target = tmp_path / "tuned.safetensors"
    assert not keep_best(report, target)
    assert not target.exists()
    assert keep_best(report, target, force=True)
    assert read_model_spec(target).crf == report.best.crf


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tuned.pth", SpecError, "models are .safetensors files"),
        ("missing/tuned.safetensors", StoreError, "is no folder"),
        ("scene.safetensors", WeightsError, "not a complete .safetensors file"),
    ],
)
def test_a_model_that_could_not_be_written_is_refused_before_the_search(tmp_path, name, error, message):
    (tmp_path / "scene.safetensors").write_bytes(b"no weights")
    with pytest.raises(error, match=message):
        check_target(tmp_path / name)
