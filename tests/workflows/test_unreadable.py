"""Places that the scene does not give: nodata in the output, and named in every report."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import rasterio
from factories import HERE, SMALL, texture

from pipeline.errors import StoreMismatchError
from pipeline.store import read_labels
from pipeline.window import Window
from workflows.run_state import RunPaths
from workflows.segment_scene import resume, segment
from workflows.status import status

HEIGHT, WIDTH = 150, 203
LOST = Window(row_off=64, col_off=128, height=64, width=64)
NODATA = 255


@pytest.fixture
def damaged(raster):
    """Return a scene with one damaged tile of 64 px."""
    path = raster()
    with rasterio.open(path) as source:
        pixels, profile = source.read(), source.profile
    with rasterio.open(path, "w", **{**profile, "compress": "deflate"}) as target:
        target.write(pixels)
    with rasterio.open(path) as source:
        offset = int(source.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(16))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "labels.zarr"


@pytest.fixture
def run(request_for, execution, damaged, out):
    """Return ``run(out, block=64, **fields of Request)``."""

    def go(dest=out, *, block=64, scene=damaged, **changes):
        return segment(request_for(scene, block=block, **{"on_read_error": "nodata", **changes}), dest, execution())

    return go


def labels_of(out, shape=(HEIGHT, WIDTH)):
    return read_labels(out, Window.of_shape(shape))


def test_what_is_lost_is_nodata_and_the_rest_is_labelled(run, out):
    summary = run()
    labels = labels_of(out)
    lost = np.zeros(labels.shape, bool)
    lost[LOST.to_slices()] = True
    np.testing.assert_array_equal(labels == NODATA, lost)
    assert summary.succeeded
    assert summary.unreadable == (LOST,)
    assert summary.failures == ()


@pytest.mark.parametrize("block", [96, 128, 256])
def test_the_bytes_do_not_depend_on_the_blocks(run, out, tmp_path, block):
    run()
    other = run(tmp_path / "other.zarr", block=block)
    np.testing.assert_array_equal(labels_of(out), labels_of(tmp_path / "other.zarr"))
    assert other.unreadable == (LOST,)


def test_only_the_lines_of_blocks_with_losses_name_them(run, out):
    run()
    lines = [json.loads(line) for line in RunPaths(out=out).journal.read_text().splitlines()]
    assert {tuple(line["block"]): line["unreadable"] for line in lines if "unreadable" in line} == {(1, 2): [[64, 128, 64, 64]]}


def test_a_later_call_and_a_status_still_name_them(run, out, execution):
    run()
    assert status(out).unreadable == (LOST,)
    again = resume(out, execution())
    assert again.unreadable == (LOST,)
    assert again.n_new == 0


def test_they_are_polygons_over_the_scene(run, out):
    run()
    (feature,) = json.loads(RunPaths(out=out).failures.read_text())["features"]
    assert feature["properties"] == {"kind": "unreadable", "row_off": 64, "col_off": 128, "height": 64, "width": 64}
    assert feature["geometry"]["coordinates"][0][0] == [500_000 + 64, 2_800_000 - 32]


def test_the_setting_is_part_of_what_a_run_is(run, out):
    run()
    with pytest.raises(StoreMismatchError, match=r"input\.on_read_error was nodata, is \(absent\)"):
        run(on_read_error="fail")


def test_a_run_that_was_begun_before_there_was_the_setting_goes_on(run, out, execution):
    record = RunPaths(out=out).record
    failed = run(on_read_error="fail")
    assert [failure.block for failure in failed.failures] == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 1),
        (2, 2),
        (2, 3),
    ]
    data = json.loads(record.read_text())
    del data["digest"]
    for name in ("on_read_error", "allow_vrt"):
        del data["spec"]["scene"][name]
    record.write_text(json.dumps(data))
    assert len(resume(out, execution()).failures) == 9


def test_a_refinement_inherits_the_setting(damaged, model, out, tmp_path, atrous):
    words = ("segment", damaged, out, "--model", model, *SMALL, *HERE)
    assert atrous(*words, "--on-read-error", "nodata", "--probabilities", "-q")[0] == 4
    code, stdout, stderr = atrous("crf", "refine", out, tmp_path / "refined.zarr", "--cluster", "serial", "--json")
    assert code == 4, stderr
    assert json.loads(stdout)["unreadable"] == [{"row_off": 64, "col_off": 128, "height": 64, "width": 64}]
    assert (labels_of(tmp_path / "refined.zarr")[LOST.to_slices()] == NODATA).all()


def test_the_command_names_them_and_ends_with_4(damaged, model, out, atrous):
    words = ("segment", damaged, out, "--model", model, *SMALL, *HERE)
    code, stdout, _ = atrous(*words, "--on-read-error", "nodata")
    assert code == 4
    assert "complete: 12 blocks done" in stdout.replace("11 blocks done, 1 nodata", "12 blocks done")
    assert "unreadable 4,096 pixels of the scene, which are nodata for that reason:" in stdout
    assert "rows 64 to 127, columns 128 to 191" in stdout
    code, stdout, _ = atrous("status", out)
    assert code == 4
    assert "rows 64 to 127, columns 128 to 191" in stdout
    code, stdout, _ = atrous("status", out, "--json")
    assert json.loads(stdout)["unreadable"] == [{"row_off": 64, "col_off": 128, "height": 64, "width": 64}]


def test_a_staged_image_that_is_cut_short_is_read_to_its_damage(run, out, tmp_path):
    path = tmp_path / "a.png"
    with rasterio.open(path, "w", driver="PNG", count=3, height=HEIGHT, width=WIDTH, dtype="uint8") as target:
        target.write(texture((3, HEIGHT, WIDTH)))
    os.truncate(path, path.stat().st_size * 2 // 3)
    summary = run(scene=path)
    (place,) = summary.unreadable
    assert 0 < place.row_off < HEIGHT == place.row_end
    labels = labels_of(out)
    assert (labels[: place.row_off] != NODATA).all()
    assert (labels[place.row_off :] == NODATA).all()


def test_a_scene_of_which_nothing_can_be_read_is_all_nodata(run, out, tmp_path):
    path = tmp_path / "a.png"
    with rasterio.open(path, "w", driver="PNG", count=3, height=HEIGHT, width=WIDTH, dtype="uint8") as target:
        target.write(texture((3, HEIGHT, WIDTH)))
    os.truncate(path, 200)
    summary = run(scene=path)
    assert summary.unreadable == (Window.of_shape((HEIGHT, WIDTH)),)
    assert summary.n_nodata == summary.n_blocks
