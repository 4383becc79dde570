"""What a shell sees of `atrous crf`: exit codes, one line for an error, results alone on stdout."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
import zarr
from factories import HERE, SMALL
from PIL import Image

from pipeline.network.model_file import read_model_spec

pytestmark = pytest.mark.usefixtures("home")

WEAK = ("--crf-param", "theta_alpha=8", "--crf-param", "tile_px=40", "--crf-param", "n_steps=2")
FEW = (
    "--w-appearance",
    "2",
    "--theta-alpha",
    "4,8",
    "--theta-beta",
    "10",
    "--crf-param",
    "tile_px=40",
    "--crf-param",
    "n_steps=2",
)


@pytest.fixture
def segment(atrous, model, scene):
    """Return ``run(out, *options)``: an output of a small serial ``atrous segment``."""

    def run(out, *options):
        assert atrous("segment", scene, out, "--model", model, *SMALL, *HERE, "-q", *options)[0] == 0

    return run


@pytest.fixture
def store(segment):
    segment("first.zarr", "--probabilities")


@pytest.fixture
def labels(home):
    """Return a label raster with class ids; the right half has none."""
    found = np.full((70, 100), 255, np.uint8)
    found[:35, :50], found[35:, :50] = 1, 2
    with rasterio.open(home / "labels.tif", "w", driver="GTiff", count=1, height=70, width=100, dtype="uint8") as target:
        target.write(found[None])
    return "labels.tif"


def labels_of(out) -> np.ndarray:
    return zarr.open_array(f"{out}/0/labels", mode="r")[:]


def expect(found, code: int, fragment: str) -> None:
    got, stdout, stderr = found
    assert (got, stdout) == (code, ""), stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert fragment in stderr


# Refine


def test_refining_prints_the_summary_of_a_run_and_can_be_resumed_watched_and_exported(atrous, store):
    code, stdout, _ = atrous("crf", "refine", "first.zarr", "second.zarr", *WEAK, *HERE, "--json")
    found = json.loads(stdout)
    assert (code, found["n_new"], found["succeeded"]) == (0, 4, True)
    assert (labels_of("second.zarr") != labels_of("first.zarr")).any()
    again = json.loads(atrous("crf", "refine", "first.zarr", "second.zarr", *WEAK, *HERE, "--json")[1])
    assert again["n_new"] == 0
    assert json.loads(atrous("resume", "second.zarr", "--json", "-q", *HERE)[1])["n_new"] == 0
    assert json.loads(atrous("status", "second.zarr", "--json")[1])["n_done"] == 4
    assert atrous("export", "second.zarr", "map.tif", "-q")[0] == 0


def test_another_setting_is_another_run(atrous, store):
    assert atrous("crf", "refine", "first.zarr", "second.zarr", *WEAK, *HERE, "-q")[0] == 0
    found = atrous("crf", "refine", "first.zarr", "second.zarr", *WEAK, "--crf-param", "w_appearance=9", *HERE, "-q")
    expect(found, 3, "crf.w_appearance was 4.0, is 9.0")


def test_a_store_without_probabilities(atrous, segment):
    segment("bare.zarr")
    expect(atrous("crf", "refine", "bare.zarr", "second.zarr", *HERE), 73, "bare.zarr holds no probabilities")


def test_a_store_that_is_none(atrous):
    expect(atrous("crf", "refine", "missing.zarr", "second.zarr", *HERE), 73, "missing.zarr is no Zarr group")


def test_a_store_into_itself(atrous, store):
    expect(atrous("crf", "refine", "first.zarr", "first.zarr", "--overwrite", *HERE), 2, "as source and as output")


def test_a_scene_that_moved(atrous, store, scene, home):
    scene.rename(home / "moved.tif")
    expect(atrous("crf", "refine", "first.zarr", "second.zarr", *WEAK, *HERE), 65, "give its place with --scene")
    assert atrous("crf", "refine", "first.zarr", "second.zarr", *WEAK, *HERE, "-q", "--scene", "moved.tif")[0] == 0


def test_a_model_without_a_crf_of_its_own(atrous, store):
    expect(atrous("crf", "refine", "first.zarr", "second.zarr", "--crf-preset", "model", *HERE), 2, "brings no CRF")


# Search


def test_a_search_prints_a_table_and_draws_a_chart(atrous, store, labels):
    code, stdout, _ = atrous("crf", "search", "first.zarr", labels, *FEW, "-q", "--plot", "chart.png", "--threads", "1")
    assert code == 0
    assert "network alone" in stdout
    assert len([line for line in stdout.splitlines() if line.split()[:1] == ["2"]]) == 2
    with Image.open("chart.png") as image:
        assert image.format == "PNG"


def test_what_a_search_keeps_in_the_model_is_what_crf_then_means(atrous, store, labels, home):
    options = (*FEW, "-q", "--json", "--write-model", "tuned.safetensors", "--force")
    code, stdout, stderr = atrous("crf", "search", "first.zarr", labels, *options)
    best = json.loads(stdout)["best"]["crf"]
    assert (code, stderr) == (0, "the best CRF is in tuned.safetensors\n")
    crf = read_model_spec(home / "tuned.safetensors").crf
    assert (crf.theta_alpha, crf.w_appearance, crf.theta_beta) == (best["theta_alpha"], 2.0, 10.0)


def test_a_crf_that_is_no_better_is_not_kept(atrous, store, home):
    with rasterio.open("same.tif", "w", driver="GTiff", count=1, height=70, width=100, dtype="uint8") as target:
        target.write(labels_of("first.zarr")[None])
    code, stdout, stderr = atrous("crf", "search", "first.zarr", "same.tif", *FEW, "-q", "--write-model", "tuned.safetensors")
    assert code == 0
    assert "no CRF of the grid beats the network alone" in stdout
    assert stderr == "tuned.safetensors was not written: the network alone is better (--force writes it)\n"
    assert not (home / "tuned.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "code", "fragment"),
    [
        pytest.param(("first.zarr",), 2, "every store needs its labels", id="no labels"),
        pytest.param(
            ("first.zarr", "labels.tif", "--scene", "a", "--scene", "b"), 2, "2 scenes were given for 1 stores", id="scenes"
        ),
        pytest.param(("first.zarr", "scene.png"), 65, "scene.png has 5 x 6 px, ", id="another size"),
        pytest.param(("first.zarr", "missing.tif"), 65, "missing.tif does not exist", id="labels missing"),
        pytest.param(("first.zarr", "labels.tif", "--theta-alpha", "0,30"), 2, "theta_alpha = 0.0", id="out of range"),
        pytest.param(
            ("first.zarr", "labels.tif", "--crf-param", "theta_beta=3"), 2, "give its values with --theta-beta", id="searched"
        ),
        pytest.param(
            ("first.zarr", "labels.tif", "--crf-param", "theta_delta=3"), 2, "no setting 'theta_delta'", id="unknown key"
        ),
        pytest.param(("first.zarr", "labels.tif", "--rounds", "0"), 2, "n_rounds = 0", id="no round"),
        pytest.param(("first.zarr", "labels.tif", "--label-colors", "#123456"), 2, "1 label colours were given", id="colours"),
        pytest.param(("first.zarr", "labels.tif", "--write-model", "x.pth"), 2, "models are .safetensors files", id="target"),
    ],
)
def test_a_search_that_cannot_be_made(atrous, store, labels, options, code, fragment):
    Image.fromarray(np.zeros((5, 6), np.uint8)).save("scene.png")
    expect(atrous("crf", "search", *options), code, fragment)


def test_values_that_are_no_numbers(atrous, store, labels):
    code, stdout, stderr = atrous("crf", "search", "first.zarr", labels, "--theta-beta", "3;5")
    assert (code, stdout) == (2, "")
    assert "expected numbers with commas between" in stderr
