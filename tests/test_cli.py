"""What a shell sees: exit code, one line on stderr that says what to do, results alone on stdout, nothing left behind."""

from __future__ import annotations

import fcntl
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from factories import HERE, SMALL
from PIL import Image

from workflows import calibrate, local_workers

pytestmark = pytest.mark.usefixtures("home")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pooling_model(tiny_model):
    """Return a checkpoint whose network averages over its window."""
    return tiny_model(image_pooling="window", name="pooling")


@pytest.fixture
def segment(atrous, model, scene):
    """Return ``run(*options, scene=, out=) -> (exit code, stdout, stderr)`` of a small serial ``atrous segment``."""

    def run(*options, scene=scene, out="out.zarr", model=model):
        return atrous("segment", scene, out, "--model", model, *SMALL, *HERE, *options)

    return run


def labels_of(out) -> np.ndarray:
    return zarr.open_array(Path(out) / "0" / "labels", mode="r")[:]


# Bad input


def write_text(path) -> None:
    path.write_text("this is no raster\n" * 50)


def write_vrt(path) -> None:
    path.write_text('<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>')


def write_truncated_png(path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(path, "png")
    path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.parametrize(
    ("name", "write", "fragment"),
    [
        pytest.param("missing.tif", None, "does not exist", id="missing"),
        pytest.param("text.tif", write_text, "does not open", id="text"),
        pytest.param("vrt.tif", write_vrt, "does not open", id="VRT under another name"),
        pytest.param("empty.tif", lambda path: path.write_bytes(b""), "does not open", id="empty"),
        pytest.param("cut.png", write_truncated_png, "is cut short", id="truncated PNG"),
        pytest.param("folder", lambda path: path.mkdir(), "is a directory without zarr.json", id="folder"),
        pytest.param("/vsicurl/http://127.0.0.1/x.tif", None, "only local files are read", id="network"),
    ],
)
def test_a_scene_that_does_not_read(segment, tmp_path, home, name, write, fragment):
    path = tmp_path / name if not name.startswith("/vsi") else name
    if write:
        write(path)
    expect(segment(scene=path), 65, fragment, home)


def expect(found, code: int, fragment: str, folder: Path | None = None) -> None:
    """Check exit code, a single line on stderr, an empty stdout, and that nothing was left in ``folder``."""
    got, stdout, stderr = found
    assert got == code, stderr
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert fragment in stderr
    assert "Traceback" not in stderr
    if folder is not None:
        assert list(folder.iterdir()) == []


def test_a_truncated_geotiff(segment, scene, home):
    scene.write_bytes(scene.read_bytes()[:-3000])
    expect(segment(), 65, "is cut short", home)


def test_too_few_bands(segment, raster, home):
    expect(segment(scene=raster(bands=2)), 65, "needs 3: red, green, blue", home)


def test_a_band_that_is_not_there(segment, home):
    expect(segment("--bands", "1,2,7"), 65, "band 7", home)


def test_an_unknown_model(segment, home):
    expect(segment(model="dubai-mobilenet2"), 2, "did you mean 'dubai-mobilenetv2'", home)


def test_a_corrupt_checkpoint(segment, model, tmp_path, home):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(model.read_bytes()[:-100])
    expect(segment(model=damaged), 65, "not a complete .safetensors file", home)


class Exploit:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("pwned"),)


def test_a_pickle_is_refused_and_not_run(segment, tmp_path, home):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Exploit()))
    expect(segment(model=path), 65, "is a pickle", home)


# Bad output


def test_another_run_is_in_the_way(segment):
    assert segment()[0] == 0
    expect(segment("--block", "32"), 3, "grid.block_px was 64, is 32")


@pytest.mark.parametrize(
    "content", ['{"zarr_format": 3, "node_type": "group", "attributes": {}}', "no JSON"], ids=["foreign", "torn"]
)
def test_a_foreign_group_is_left_alone(segment, home, content):
    out = home / "out.zarr"
    out.mkdir()
    (out / "zarr.json").write_text(content)
    expect(segment("--overwrite"), 73, "is no output of atrous")
    assert [path.name for path in home.rglob("*")] == ["out.zarr", "zarr.json"]
    assert (out / "zarr.json").read_text() == content


def test_an_output_that_cannot_be_written(segment, home):
    (home / "file").write_text("")
    expect(segment(out="file/out.zarr"), 73, "cannot be written")
    assert [path.name for path in home.iterdir()] == ["file"]


def test_a_locked_output(segment, home):
    folder = home / "out.zarr.run"
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        lock.write("process 7 on elsewhere\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        expect(segment(), 75, "is being worked on by process 7 on elsewhere")
    assert not (home / "out.zarr").exists()


@pytest.mark.parametrize("command", ["resume", "status"])
def test_no_run_is_there(atrous, home, command):
    expect(atrous(command, "nothing.zarr"), 73, "has no state of a run", home)


def test_memory_that_is_not_enough(segment, home, monkeypatch):
    monkeypatch.setattr(local_workers, "MEMORY_LIMIT", 10 * 2**20)
    expect(segment(), 3, "one worker needs", home)


# Bad usage


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        pytest.param(["--block", "100"], "try --block 96", id="block and chunk"),
        pytest.param(["--overlap", "64"], "must lie between 0 and 63", id="overlap"),
        pytest.param(["--window", "8"], "choose at least 32 px", id="window"),
        pytest.param(["--chunk", "3"], "choose at least 16 px", id="chunk"),
        pytest.param(["--shard", "33"], "multiple of the chunk", id="shard"),
        pytest.param(["--bands", "1,2"], "names 2 bands; the model tiny needs 3", id="bands"),
        pytest.param(["--bands", "0,1,2"], "counted from 1", id="band 0"),
        pytest.param(["--stretch", "9,3"], "the first value must be below the second", id="stretch"),
        pytest.param(["--workers", "0"], "n_workers = 0", id="workers"),
        pytest.param(["--threads", "0"], "threads = 0", id="threads"),
        pytest.param(["--crf-preset", "v7"], "preset 'v7' was asked for; known are: kazuto, v1", id="preset"),
        pytest.param(["--crf-preset", "model"], "the model tiny brings no CRF: name one of kazuto, v1", id="no CRF of its own"),
        pytest.param(["--crf-param", "theta_alfa=3"], "did you mean 'theta_alpha'?", id="CRF key"),
        pytest.param(["--crf-param", "n_steps=many"], "n_steps=many was given; expected a whole number", id="CRF value"),
        pytest.param(
            ["--crf-param", "theta_beta=0"], "theta_beta = 0.0 was asked for; it must be a finite number above 0", id="CRF range"
        ),
        pytest.param(["--crf-param", "guide_bands=4"], "the model has 3 band(s)", id="CRF bands"),
        pytest.param(["--crf-param", "compatibility=costs.txt"], "expected a .csv or .json file", id="CRF matrix"),
        pytest.param(
            ["--crf-backend", "pydensecrf", "--crf-param", "stop_below=0.1"], "give 0, or take the backend cpu", id="CRF stop"
        ),
    ],
)
def test_settings_that_contradict_each_other(segment, home, options, fragment):
    expect(segment(*options), 2, fragment, home)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        pytest.param(["--blend", "smooth"], "'taper'", id="choice"),
        pytest.param(["--block", "many"], "'many' is not a valid integer", id="integer"),
        pytest.param(["--bands", "red"], "numbers with commas between", id="numbers"),
        pytest.param(["--bands", ""], "numbers with commas between", id="no numbers"),
        pytest.param(["--stretch", "1,2,3"], "expected two: LOW,HIGH", id="stretch"),
        pytest.param(["--blok", "64"], "--block", id="unknown option"),
        pytest.param(["--crf-backend", "gpu"], "'pydensecrf'", id="CRF backend"),
        pytest.param(["--no-crf", "--crf-param", "n_steps=3"], "--crf-param was given, and --no-crf", id="param without CRF"),
        pytest.param(["--no-crf", "--crf-preset", "v1"], "--crf-preset was given, and --no-crf", id="preset without CRF"),
        pytest.param(["--no-crf", "--crf-backend", "cpu"], "--crf-backend was given, and --no-crf", id="backend without CRF"),
        pytest.param(["third"], "unexpected extra argument", id="argument"),
    ],
)
def test_options_that_do_not_parse(segment, home, options, fragment):
    code, stdout, stderr = segment(*options)
    assert (code, stdout) == (2, "")
    assert fragment in stderr
    assert "Traceback" not in stderr
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("arguments", [["segmnt"], ["segment"], ["status"], ["models", "lst"]], ids=" ".join)
def test_commands_that_do_not_parse(atrous, arguments):
    code, stdout, stderr = atrous(*arguments)
    assert (code, stdout) == (2, "")
    assert "Error: " in stderr


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        pytest.param("blok = 64", "unknown key 'blok'; did you mean block?", id="unknown key"),
        pytest.param("zzz = 64", "unknown key 'zzz'; known are", id="unlike any"),
        pytest.param("[grid]\nblock = 64", "unknown key 'grid'", id="table"),
        pytest.param("block = ", "cannot be read as TOML", id="no TOML"),
        pytest.param("window = 64.5", "'64.5' is not a valid integer", id="fraction"),
        pytest.param("window = 'wide'", "'wide' is not a valid integer", id="text"),
        pytest.param("blend = 'smooth'", "'taper'", id="choice"),
        pytest.param(None, "cannot be read as TOML", id="missing"),
    ],
)
def test_configs_that_do_not_parse(atrous, scene, tmp_path, home, text, fragment):
    config = tmp_path / "config.toml"
    if text is not None:
        config.write_text(text)
    code, stdout, stderr = atrous("segment", scene, "out.zarr", "--config", config)
    assert (code, stdout) == (2, "")
    assert fragment in " ".join(stderr.split())
    assert list(home.iterdir()) == []


# What works


def test_json_alone_is_on_stdout(segment):
    code, stdout, _ = segment("--json")
    told = json.loads(stdout)
    assert (code, told["succeeded"], told["n_done"], told["n_new"]) == (0, True, 4, 4)
    assert sum(told["class_counts"]) == 70 * 100
    code, stdout, _ = segment("--json")
    assert (code, json.loads(stdout)["n_new"]) == (0, 0)


def test_a_summary_for_people(segment, atrous, home):
    code, stdout, stderr = segment()
    assert code == 0
    assert "complete: 4 blocks done, 0 nodata, 0 failed of 4; 4 new" in stdout
    assert stdout.endswith(f"{home / 'out.zarr'}\n")
    assert "4 blocks; 1 worker" in stderr
    assert "\x1b" not in stdout + stderr
    code, stdout, stderr = atrous("status", "out.zarr", "--json")
    told = json.loads(stdout)
    assert (code, stderr) == (0, "")
    assert (told["n_blocks"], told["n_done"], told["n_left"], told["eta_s"], told["running"]) == (4, 4, 0, 0, False)


def test_quiet_prints_nothing(segment):
    assert segment("-q") == (0, "", "")


def test_quarantined_blocks_have_an_exit_code(segment, atrous, monkeypatch):
    from workflows import serial_executor

    real = serial_executor.process_block

    def process(job, index, *, attempt=1):
        if index == (0, 1):
            raise ValueError("odd\npixels")
        return real(job, index, attempt=attempt)

    monkeypatch.setattr(serial_executor, "process_block", process)
    code, stdout, stderr = segment()
    assert code == 4
    assert "incomplete: 3 blocks done, 0 nodata, 1 failed of 4" in stdout
    assert "failed: block (0, 1): ValueError: odd pixels\n" in stderr
    code, stdout, _ = atrous("status", "out.zarr")
    assert code == 4
    assert "blocks   4: 3 done, 0 nodata, 1 failed, 0 left" in stdout
    assert "failed   block (0, 1): ValueError: odd pixels" in stdout
    monkeypatch.setattr(serial_executor, "process_block", real)
    assert atrous("resume", "out.zarr", *HERE)[0] == 4
    assert atrous("resume", "out.zarr", "--retry-failed", *HERE)[0] == 0


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (16, 90), (90, 16), (20, 33)], ids=["one pixel", "strip", "column", "less than a window"]
)
def test_scenes_of_odd_sizes(segment, raster, height, width):
    assert segment("-q", scene=raster(height=height, width=width)) == (0, "", "")
    labels = labels_of("out.zarr")
    assert labels.shape == (height, width)
    assert labels.max() < 3


def test_a_scene_of_nodata_says_so(segment, raster):
    code, stdout, _ = segment(scene=raster(height=70, width=100, nodata=0, holes=((0, 0, 70, 100),)))
    assert code == 0
    assert "the scene holds nodata only" in stdout
    assert "complete: 0 blocks done, 4 nodata" in stdout


def test_settings_come_from_line_then_environment_then_config_then_default(atrous, scene, model, tmp_path, monkeypatch):
    config = tmp_path / "config.toml"
    config.write_text("block = 96\nchunk = 16\noverlap = 32\nbands = [3, 2, 1]\n")
    monkeypatch.setenv("ATROUS_PLAN_BLOCK", "48")
    monkeypatch.setenv("ATROUS_PLAN_OVERLAP", "16")
    line = ["--config", config, "--overlap", "0", "--model", model, "--window", "64", *HERE]
    code, stdout, _ = atrous("plan", scene, "--json", *line)
    told = json.loads(stdout)
    assert code == 0
    assert told["grid"] == {"window_px": 64, "overlap_px": 0, "block_px": 48, "blend": "taper"}
    assert told["scene"]["bands"] == [3, 2, 1]


FEW = ("--crf-param", "theta_alpha=4", "--crf-param", "tile_px=48")
"""A CRF that is quick on a small scene."""


@pytest.fixture
def crf_of(atrous, model, scene, monkeypatch):
    """Return ``plan(*options, **environment) -> the CRF of the plan`` of a small scene."""
    monkeypatch.setattr(calibrate, "calibrate", lambda *_: calibrate.Estimate(network_s=1.0, crf_s=1.0))

    def go(*options, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code, stdout, stderr = atrous("plan", scene, "--json", "--model", model, *SMALL, *HERE, *options)
        assert code == 0, stderr
        return json.loads(stdout)["crf"]

    return go


def test_without_a_word_about_it_there_is_no_crf(crf_of):
    assert crf_of() is None
    assert crf_of("--no-crf") is None


@pytest.mark.parametrize(
    ("options", "backend", "origin"),
    [
        (["--crf"], "cpu", "preset kazuto"),
        (["--crf-preset", "v2"], "cpu", "preset v2"),
        (["--crf-backend", "torch"], "torch", "preset kazuto"),
        (["--crf-backend", "auto"], "cpu", "preset kazuto"),
        (["--crf-param", "n_steps=3", "--crf-param", "theta_alpha=9"], "cpu", "preset kazuto, with other n_steps, theta_alpha"),
        (["--crf", "--crf-preset", "v1", "--crf-param", "n_steps=3"], "cpu", "preset v1, with other n_steps"),
    ],
    ids=" ".join,
)
def test_each_option_of_the_crf_asks_for_one(crf_of, options, backend, origin):
    told = crf_of(*options)
    assert (told["backend"], told["from"]) == (backend, origin)


def test_crf_options_come_from_files_and_the_environment_too(crf_of, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("crf-preset = 'v1'\ncrf-param = ['theta_alpha=9', 'guide_bands=1,2']\n")
    assert crf_of("--config", config)["from"] == "preset v1, with other guide_bands, theta_alpha"
    assert crf_of("--config", config)["halo_px"] == 20
    assert crf_of("--config", config, "--no-crf") is None, "what was typed wins"
    config.write_text("crf-param = 'theta_alpha=5'\n")
    assert crf_of("--config", config)["halo_px"] == 11
    assert crf_of(ATROUS_PLAN_CRF_PARAM="theta_alpha=6 n_steps=2")["from"] == "preset kazuto, with other n_steps, theta_alpha"
    assert crf_of(ATROUS_PLAN_CRF_PRESET="v2")["from"] == "preset v2, with other n_steps, theta_alpha"


def test_an_option_typed_beside_a_file_that_says_no_is_refused(atrous, scene, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("crf = false\n")
    code, _, stderr = atrous("plan", scene, "--config", config, "--crf-preset", "v1")
    assert (code, "crf = false in a file" in " ".join(stderr.split())) == (2, True)


@pytest.mark.parametrize("backend", ["cpu", "torch", "pydensecrf"])
def test_every_backend_segments_and_another_is_another_run(segment, home, backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    assert segment("--crf-backend", backend, *FEW)[0] == 0
    code, _, stderr = segment("--crf-backend", {"cpu": "torch"}.get(backend, "cpu"), *FEW)
    assert code == 3
    assert f"crf.backend was {backend}, is" in stderr


def test_a_matrix_of_costs_is_read_from_a_file_and_changes_labels(segment, home):
    (home / "costs.csv").write_text("0,1,1\n1,0,9\n1,9,0\n")
    assert segment("--crf", *FEW, out="potts.zarr")[0] == 0
    assert segment(*FEW, "--crf-param", "compatibility=costs.csv", out="matrix.zarr")[0] == 0
    assert (labels_of("potts.zarr") != labels_of("matrix.zarr")).any()
    code, _, stderr = segment("--crf-param", "compatibility=nothing.csv", out="third.zarr")
    assert code == 65
    assert "nothing.csv cannot be read" in stderr


@pytest.mark.parametrize("command", [["plan"], ["segment", "--dry-run"]], ids=" ".join)
def test_a_plan_begins_nothing(atrous, scene, model, home, command):
    out = [] if command == ["plan"] else ["out.zarr"]
    code, stdout, stderr = atrous(command[0], scene, *out, *command[1:], "--model", model, *SMALL, *HERE)
    assert (code, stderr) == (0, "")
    assert "blocks     4 of 64 px" in stdout
    assert "windows    4 of 64 px" in stdout
    assert list(home.iterdir()) == []


def test_exports(segment, atrous):
    segment("-q")
    code, stdout, _ = atrous("export", "out.zarr", "map.tif")
    assert (code, stdout) == (0, "map.tif\n")
    with rasterio.open("map.tif") as written:
        np.testing.assert_array_equal(written.read(1), labels_of("out.zarr"))
    code, stdout, _ = atrous("export", "out.zarr", "map.png", "--json")
    assert (code, json.loads(stdout)["dest"]) == (0, "map.png")
    assert Image.open("map.png").format == "PNG"
    code, stdout, stderr = atrous("export", "out.zarr", "map.tif")
    assert (code, stdout) == (73, "")
    assert "map.tif" in stderr


def test_models(atrous, model):
    code, stdout, _ = atrous("models", "list")
    assert code == 0
    header, line = stdout.splitlines()
    assert header.split() == ["name", "parameters", "GFLOP/Mpx", "field", "margin", "classes", "from", "licence"]
    assert line.startswith("dubai-mobilenetv2  2.5 M")
    assert "432 px" in line
    assert "trained on 4 scenes" in line
    code, stdout, _ = atrous("models", "info", model)
    assert code == 0
    assert "classes          class 0, class 1, class 2" in stdout
    code, stdout, _ = atrous("models", "info", model, "--json")
    assert json.loads(stdout)["name"] == "tiny"
    expect(atrous("models", "info", "nothing"), 2, "neither a shipped model")


@pytest.mark.parametrize("arguments", [["--help"], ["segment", "-h"], ["--version"]], ids=" ".join)
def test_help_succeeds(atrous, arguments):
    code, stdout, stderr = atrous(*arguments)
    assert (code, stderr) == (0, "")
    assert "atrous" in stdout


# In a shell of its own


def in_shell(*arguments, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("atrous")), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_installed_command_refuses(scene, home):
    scene.write_bytes(scene.read_bytes()[:-3000])
    done = in_shell("segment", scene, "out.zarr", cwd=home)
    expect((done.returncode, done.stdout, done.stderr), 65, "is cut short", home)


def test_the_installed_command_segments(scene, model, home):
    done = in_shell("segment", scene, "out.zarr", "--model", model, *SMALL, *HERE, "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["succeeded"]


# Scales, and the image-level branch


def test_several_scales_are_planned_run_resumed_and_kept_apart(atrous, segment, model, scene):
    options = ("--scales", "0.5,1", "--flip", "--fusion", "max")
    code, stdout, _ = atrous("plan", scene, "--model", model, *SMALL, *HERE, *options)
    assert code == 0
    assert "scales     0.5, 1, each also mirrored (max): 2.50 times the work" in stdout
    code, stdout, _ = atrous("plan", scene, "--model", model, *SMALL, *HERE, *options, "--json")
    plan = json.loads(stdout)
    assert plan["multiscale"] == {"scales": [0.5, 1.0], "flip": True, "fusion": "max", "relative_cost": 2.5}
    assert plan["network_cost"] == pytest.approx(2.5 * plan["redundancy"], rel=1e-3)
    assert segment(*options)[0] == 0
    first = labels_of("out.zarr")
    assert segment(*options)[0] == 0, "the same command goes on"
    code, _, stderr = segment()
    assert code == 3
    assert "multiscale" in stderr
    assert segment("--overwrite")[0] == 0
    assert (labels_of("out.zarr") != first).any()


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (("--scales", "0.1"), "smaller than the network's output stride of 16 px"),
        (("--scales", "1,1"), "name one twice"),
        (("--scales", "0,1"), "a scale of 0.0 was given"),
        (("--image-pooling", "window"), "has no image-level branch"),
    ],
)
def test_scales_and_pooling_that_cannot_be(segment, home, options, fragment):
    expect(segment(*options), 2, fragment, home)


def test_scales_that_are_no_numbers(segment):
    code, _, stderr = segment("--scales", "half")
    assert code == 2
    assert "'half' was given" in stderr


def test_the_mean_of_the_scene_is_measured_once_and_kept(atrous, segment, pooling_model, monkeypatch):
    from pipeline import scene_means

    options = ("--image-pooling", "global")
    assert segment(*options, model=pooling_model)[0] == 0
    labels = labels_of("out.zarr")
    record = json.loads(Path("out.zarr.run/run.json").read_text())
    assert np.shape(record["spec"]["scene_means"]) == (1, 320)
    monkeypatch.setattr(scene_means, "measure_scene_means", lambda *_, **__: pytest.fail("measured again"))
    for path in (Path("out.zarr") / "0" / "labels" / "c").rglob("*"):
        if path.is_file():
            path.unlink()
    assert atrous("resume", "out.zarr", *HERE)[0] == 0
    assert (labels_of("out.zarr") == labels).all()
    assert segment(*options, model=pooling_model)[0] == 0
    code, _, stderr = segment(model=pooling_model)
    assert code == 3
    assert "image_pooling" in stderr


def test_a_scene_that_breaks_while_its_mean_is_measured_leaves_nothing(segment, pooling_model, home, monkeypatch):
    from pipeline import scene_means
    from pipeline.errors import SourceError

    def breaks(*_, **__):
        raise SourceError("scene.tif cannot be read at row 3; copy it again")

    monkeypatch.setattr(scene_means, "measure_scene_means", breaks)
    expect(segment("--image-pooling", "global", model=pooling_model), 65, "cannot be read at row 3", home)


def test_exact_blending_of_a_pooling_model_names_the_way_out(segment, pooling_model, home):
    expect(segment("--blend", "exact", model=pooling_model), 2, "use --image-pooling global", home)
