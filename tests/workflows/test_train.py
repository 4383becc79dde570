import csv
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cli
from pipeline.errors import LockedError, SourceError, SpecError, StoreError, StoreMismatchError, WeightsError
from pipeline.network.checkpoint import load_network, read_tensors
from pipeline.network.deeplab import build_network
from pipeline.network.model_file import read_model_spec
from workflows.run_state import locked
from workflows.train import Measured, Resumed, StepDone, TrainingDivergedError, TrainSpec, _FolderLock, run
from workflows.training_input import open_input
from workflows.training_loop import Trainer
from workflows.training_state import STATE_FILE

ROOT = Path(__file__).parents[2]

CONFIG = """
name = "tiny"
output = "out"
ignored_colors = ["#000000"]
precision = "fp32"
seed = 4
threads = 1

[[classes]]
name = "dark"
color = "#102030"

[[classes]]
name = "bright"
color = "#fedcba"

[[train]]
name = "left"
image = "left/image_*.png"
label = "left/label_*.png"
mosaic = [1, 2]

[[test]]
image = "right.png"
label = "right_label.png"

[network]
atrous_rates = [1]
image_pooling = "off"
aspp_channels = 16
low_level_channels = 8
decoder_channels = 16

[schedule]
n_steps = 50
batch = 4
window_px = 32
learning_rate = 1e-2
checkpoint_every = 10

[optimizer]
backbone_factor = 0.3
"""


def write_pair(image: Path, label: Path, *, shape: tuple[int, int], edge: int, palette: bool) -> None:
    """Dark pixels left of column ``edge`` and bright ones right of it, with labels in colours."""
    bright = np.broadcast_to(np.arange(shape[1]) >= edge, shape)
    noise = np.random.default_rng(edge).integers(0, 30, (*shape, 3))
    Image.fromarray((np.where(bright[..., None], 200, 30) + noise).astype(np.uint8)).save(image)
    colors = np.array([[0x10, 0x20, 0x30], [0xFE, 0xDC, 0xBA], [0, 0, 0]], dtype=np.uint8)
    ids = bright.astype(np.uint8)
    ids[0, :3] = 2
    picture = Image.fromarray(colors[ids])
    (picture.quantize(16) if palette else picture).save(label)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "left").mkdir()
    for index, width in enumerate((50, 51)):
        paths = (tmp_path / "left" / f"{kind}_{index}.png" for kind in ("image", "label"))
        write_pair(*paths, shape=(70, width), edge=20 + index, palette=index == 1)
    write_pair(tmp_path / "right.png", tmp_path / "right_label.png", shape=(75, 90), edge=41, palette=False)
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path / "config.toml"


@pytest.fixture
def short(config: Path) -> TrainSpec:
    spec = TrainSpec.from_toml(config)
    return replace(spec, schedule=replace(spec.schedule, n_steps=3, checkpoint_every=1, batch=2))


def test_a_separable_scene_is_learned_and_the_checkpoint_says_how(config: Path) -> None:
    events: list[object] = []
    summary = run(TrainSpec.from_toml(config), events.append)

    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(1, 51))
    assert steps[0].learning_rate == pytest.approx(1e-2)
    assert steps[-1].learning_rate == pytest.approx(1e-2 * (1 / 50) ** 0.9)
    assert steps[-1].loss == pytest.approx(summary.final_loss)
    assert summary.final_loss < steps[0].loss
    assert [type(event) for event in events[-1:]] == [Measured]

    (metrics,) = summary.metrics
    assert metrics.mean_iou is not None
    assert metrics.mean_iou > 0.85
    assert sum(map(sum, metrics.confusion)) == 75 * 90 - 3, "three pixels are ignored"

    model = read_model_spec(summary.checkpoint)
    assert [c.name for c in model.classes] == ["dark", "bright"]
    origin = model.provenance
    assert origin["complete"] is True
    assert origin["n_steps_done"] == 50
    assert (origin["trained_on"], origin["validated_on"], origin["tested_on"]) == (
        ["left"],
        [],
        ["right.png"],
    )
    assert origin["metrics"]["right.png"] == metrics.to_dict()


def test_table_curves_and_samples_are_written(short: TrainSpec) -> None:
    summary = run(replace(short, validation=short.test))
    with summary.metrics_csv.open() as file:
        rows = list(csv.DictReader(file))
    losses = [(row["step"], row["part"]) for row in rows if row["metric"] == "loss"]
    assert losses == [("1", "train"), ("2", "train"), ("3", "train")]
    measured = {(row["part"], row["class"], row["metric"]) for row in rows}
    assert {("validation", "dark", "iou"), ("validation", "", "mean_iou"), ("test", "bright", "iou")} <= measured
    curves, samples = (np.asarray(Image.open(path).convert("RGB")) for path in (summary.curves, summary.samples))
    assert curves.shape[1] > 2.5 * curves.shape[0] * 0.9, "three panels: loss, mean IoU, IoU by class"
    assert {(0x10, 0x20, 0x30), (0xFE, 0xDC, 0xBA)} <= set(map(tuple, samples.reshape(-1, 3))), "labels in the classes' colours"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(short: TrainSpec, tmp_path: Path) -> None:
    contents = []
    for index, seed in enumerate((7, 7, 8)):
        torch.rand(index + 1)  # the global generator must not matter
        summary = run(replace(short, seed=seed, output=tmp_path / str(index)))
        contents.append(load_network(summary.checkpoint)[1].classifier.weight)
    assert torch.equal(contents[0], contents[1])
    assert not torch.equal(contents[0], contents[2])


def test_the_global_generator_and_threads_are_left_alone(short: TrainSpec) -> None:
    torch.manual_seed(99)
    expected, n_threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(99)
    run(short)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == n_threads


def test_test_scenes_do_not_influence_the_weights(short: TrainSpec, tmp_path: Path) -> None:
    with_test = load_network(run(short).checkpoint)[1].state_dict()
    without = load_network(run(replace(short, test=(), output=tmp_path / "b")).checkpoint)[1].state_dict()
    assert all(torch.equal(with_test[name], without[name]) for name in with_test)


# Going on


class EndedError(Exception):
    """What ends a training from outside."""


def ended_after(spec: TrainSpec, step: int) -> None:
    """Train until ``step`` is done, and no further."""

    def end(event: object) -> None:
        if isinstance(event, StepDone) and event.step == step:
            raise EndedError

    with pytest.raises(EndedError):
        run(spec, end)


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("adamw", {}),
        ("sgd", {}),
        ("adamw", {"average": 0.9, "accumulate": 2}),
        (
            "sgd",
            {"phases": ({"share": 2.0}, {"share": 1.0, "learning_rate": 1e-3, "output_stride": 8, "normalisation": "frozen"})},
        ),
    ],
    ids=["adamw", "sgd", "average-accumulate", "phases"],
)
def test_an_ended_and_resumed_training_has_the_weights_of_one_that_was_not(
    short: TrainSpec, tmp_path: Path, changes: dict, optimizer: str
) -> None:
    from workflows.training_schedule import PhaseSpec

    if "phases" in changes:
        changes = {"phases": tuple(PhaseSpec(**one) for one in changes["phases"])}
    schedule = replace(short.schedule, n_steps=6, checkpoint_every=2, **changes)
    spec = replace(short, schedule=schedule, optimizer=replace(short.optimizer, name=optimizer), validation=short.test)
    whole = run(replace(spec, output=tmp_path / "whole"))
    for ended in (1, 3, 5):  # nothing kept yet; between two states; after the phases have changed
        output = tmp_path / f"ended-{ended}"
        ended_after(replace(spec, output=output), ended)
        events: list[object] = []
        resumed = run(replace(spec, output=output), events.append, resume=True)
        assert [event.step for event in events if isinstance(event, Resumed)] == ([ended - 1] if ended > 1 else [])
        first, second = (read_tensors(one.checkpoint) for one in (whole, resumed))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert resumed.metrics_csv.read_text() == whole.metrics_csv.read_text()


@pytest.mark.slow
def test_a_killed_and_resumed_command_ends_with_the_same_file(config: Path) -> None:
    config.write_text(CONFIG.replace("n_steps = 50", "n_steps = 12").replace("checkpoint_every = 10", "checkpoint_every = 1"))
    command = [sys.executable, "-W", "ignore", "-m", "cli", "train", str(config), "-q"]
    subprocess.run(command, cwd=ROOT, check=True)
    whole = (config.parent / "out/tiny.safetensors").read_bytes()
    (config.parent / "out").rename(config.parent / "whole")
    killed = subprocess.Popen(command, cwd=ROOT)
    state = config.parent / "out" / STATE_FILE
    while not state.exists() and killed.poll() is None:
        pass
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    subprocess.run([*command, "--resume"], cwd=ROOT, check=True)
    assert (config.parent / "out/tiny.safetensors").read_bytes() == whole


def test_resuming_a_finished_training_changes_no_weight(short: TrainSpec) -> None:
    before = run(short)
    weights = read_tensors(before.checkpoint)
    after = run(short, resume=True)
    assert all(torch.equal(weights[name], tensor) for name, tensor in read_tensors(after.checkpoint).items())
    assert after.final_loss == before.final_loss


def test_a_folder_with_a_training_is_refused_unless_told_what_to_do(short: TrainSpec) -> None:
    run(short)
    with pytest.raises(StoreMismatchError, match=r"--resume.*--overwrite"):
        run(short)
    other = replace(short, seed=5)
    with pytest.raises(StoreMismatchError, match="seed: was 4, is 5"):
        run(other, resume=True)
    assert run(other, overwrite=True).n_steps == 3


def test_other_labels_are_no_going_on(short: TrainSpec) -> None:
    run(short)
    label = short.train[0].image.parent / "label_0.png"
    picture = np.asarray(Image.open(label).convert("RGB")).copy()
    picture[0, 5] = 0
    Image.fromarray(picture).save(label)
    with pytest.raises(StoreMismatchError, match=r"train\.left\.pixels\.0"):
        run(short, resume=True)


def test_a_second_training_into_one_folder_is_told_to_wait(short: TrainSpec) -> None:
    short.output.mkdir()
    with locked(_FolderLock(out=short.output)), pytest.raises(LockedError, match="being worked on"):
        run(short)


# Choosing the best


def test_the_best_weights_on_the_validation_part_are_kept(short: TrainSpec) -> None:
    spec = replace(short, schedule=replace(short.schedule, n_steps=6, validate_every=2), validation=short.test)
    events: list[object] = []
    summary = run(spec, events.append)
    measured = [event for event in events if isinstance(event, Measured) and event.part == "validation"]
    assert len(measured) == 3
    best = max(measured, key=lambda event: event.metrics.mean_iou or 0)
    assert summary.best_score == best.metrics.mean_iou
    assert [event for event in measured if event.is_best][-1].metrics == best.metrics
    assert read_model_spec(summary.checkpoint).provenance["n_steps_done"] == summary.best_step


def test_a_training_that_gets_no_better_ends_early_and_stays_ended(short: TrainSpec) -> None:
    schedule = replace(short.schedule, n_steps=40, validate_every=1, patience=2, learning_rate=1e-9)
    spec = replace(short, schedule=schedule, validation=short.test)
    summary = run(spec)
    assert summary.ended_early
    assert summary.n_steps < 40
    assert summary.n_steps - (summary.best_step or 0) == 2
    assert run(spec, resume=True).n_steps == summary.n_steps


def test_a_block_of_ground_can_be_held_out(config: Path) -> None:
    config.write_text(
        CONFIG.replace("n_steps = 50", "n_steps = 2") + '\n[split]\nby = "block"\nblock_px = 64\nvalidation = 0.3\n'
    )
    summary = run(TrainSpec.from_toml(config))
    assert summary.best_step is not None
    pixels = read_model_spec(summary.checkpoint).provenance["labelled_px"]
    counted = sum(sum(pixels[part]["pixels"].values()) for part in ("train", "validation"))
    assert counted == 70 * 101 - 6
    assert all(value > 0 for part in ("train", "validation") for value in pixels[part]["pixels"].values())


# What goes wrong


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(short: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Trainer.advance

    def fail_at_3(self: Trainer, batches: list) -> float:
        return float("nan") if self.step == 2 else advance(self, batches)

    monkeypatch.setattr(Trainer, "advance", fail_at_3)
    with pytest.raises(TrainingDivergedError, match=r"nan at step 3 of 3.*holds step 2") as caught:
        run(short)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    model, _ = load_network(short.output / "last.safetensors")
    assert model.provenance["n_steps_done"] == 2
    assert model.provenance["complete"] is False
    monkeypatch.undo()
    assert run(short, resume=True).n_steps == 3


@pytest.mark.parametrize("name", ["state.pt", "last.safetensors", "metrics.csv"])
def test_a_full_disk_stops_and_leaves_what_was_kept(short: TrainSpec, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write, seen = Path.write_bytes, []

    def fail_second(self: Path, data: bytes) -> int:
        if self.name.startswith(name):
            seen.append(self)
            if len(seen) == 2:
                raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", fail_second)
    with pytest.raises(StoreError, match="No space left on device"):
        run(short)
    monkeypatch.undo()
    load_network(short.output / "last.safetensors")
    assert run(short, resume=True).n_steps == 3


def test_without_mean_and_std_those_of_the_training_scenes_are_stored(short: TrainSpec) -> None:
    model = read_model_spec(run(short).checkpoint)
    parts = [np.asarray(Image.open(short.train[0].image.parent / f"image_{i}.png")) for i in (0, 1)]
    pixels = np.concatenate([part.reshape(-1, 3) for part in parts]).astype(np.float64)
    np.testing.assert_allclose(model.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(model.std, pixels.std(axis=0), rtol=1e-6)


def test_bf16_training_gives_finite_losses(short: TrainSpec) -> None:
    assert np.isfinite(run(replace(short, precision="bf16")).final_loss)


def test_float16_is_refused_without_cuda(short: TrainSpec) -> None:
    with pytest.raises(SpecError, match=r"fp16.*CUDA"):
        run(replace(short, precision="fp16", device="cpu"))


def test_a_trained_model_can_start_another_with_other_classes_and_bands(short: TrainSpec, tmp_path: Path) -> None:
    first = run(short).checkpoint
    start = read_tensors(first)
    spec = replace(
        short,
        init=first,
        output=tmp_path / "second",
        bands=("red", "green"),
        train=tuple(replace(entry, bands=(1, 2)) for entry in short.train),
        test=tuple(replace(entry, bands=(1, 2)) for entry in short.test),
        network=replace(short.network, n_bands=2),
        schedule=replace(short.schedule, learning_rate=1e-12, warmup_steps=0),
    )
    second = read_tensors(run(spec).checkpoint)
    name = "backbone.stem.conv.weight"
    torch.testing.assert_close(second[name], start[name][:, :2] + start[name][:, 2:] / 2, rtol=2e-3, atol=1e-4)
    name = "aspp.branches.0.conv.weight"
    found = [key for key in start if key.startswith("aspp") and start[key].ndim == 4]
    assert found
    assert all(torch.allclose(start[key], second[key], rtol=2e-3, atol=1e-4) for key in found)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(config: Path) -> None:
    """With frozen normalisations the mean of two halves' gradients is that of the whole batch."""
    text = CONFIG.replace("n_steps = 50", "n_steps = 3").replace("learning_rate = 1e-2", "learning_rate = 1e-4")
    config.write_text(text.replace("[optimizer]", '[[schedule.phases]]\nnormalisation = "frozen"\n[optimizer]\nname = "sgd"'))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "cli", "train", str(config), "--json"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('"checkpoint"') == 1, "the first process alone reports"
    spec = TrainSpec.from_toml(config)
    together = torch.load(config.parent / "out" / STATE_FILE, weights_only=True)["network"]
    run(replace(spec, output=config.parent / "alone"))
    alone = torch.load(config.parent / "alone" / STATE_FILE, weights_only=True)["network"]
    torch.manual_seed(spec.seed)
    begun = build_network(spec.network).state_dict()
    for name in ("classifier.weight", "decoder.reduce.conv.weight"):
        moved = alone[name] - begun[name]
        assert float(moved.abs().max()) > 0
        torch.testing.assert_close(together[name] - begun[name], moved, rtol=0.02, atol=float(moved.abs().max()) * 0.02)


def test_a_batch_that_processes_cannot_share_is_refused(short: TrainSpec) -> None:
    from workflows.processes import Processes
    from workflows.train import _check_batch

    with pytest.raises(SpecError, match="batch is 2 and 2 processes"):
        _check_batch(short, Processes(rank=0, count=2))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed = 4", "sed = 4", "unknown key 'sed'; did you mean 'seed'"),
        ("n_steps = 50", "n_step = 50", r"\[schedule\] has the unknown key 'n_step'.*'n_steps'"),
        ("atrous_rates", "rates", "unknown key 'rates'"),
        ("mosaic", "mosiac", r"\[\[train\]\] has the unknown key 'mosiac'.*'mosaic'"),
        ('name = "tiny"\n', "", "lacks .*name"),
        ("window_px = 32", "window_px = 40", "multiple of the output stride 16.*32"),
        ("batch = 4", "batch = 1", "batch is 1"),
        ("learning_rate = 1e-2", "learning_rate = 0", "learning_rate is 0"),
        ('precision = "fp32"', 'precision = "fp8"', "precision is 'fp8'"),
        ('precision = "fp32"', "mean = [1.0, 2.0, 3.0]", "only one of mean and std"),
        ("#fedcba", "fedcba", "#rrggbb"),
        ('output = "out"', "output = 3", "wrong kind"),
        ("precision", 'label_colors = ["#102030"]\nprecision', "label_colors has 1 colours; there are 2 classes"),
        ("[network]", "[network", "cannot be read"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(config: Path, old: str, new: str, words: str) -> None:
    assert old in CONFIG
    config.write_text(CONFIG.replace(old, new, 1))
    with pytest.raises(SpecError, match=words):
        TrainSpec.from_toml(config)


def test_maps_may_show_other_colours_than_the_labels_are_painted_in(config: Path) -> None:
    text = CONFIG.replace('color = "#102030"', 'color = "#ff0000"').replace(
        "precision", 'label_colors = ["#102030", "#fedcba"]\nprecision', 1
    )
    config.write_text(text)
    spec = TrainSpec.from_toml(config)
    with open_input(spec) as data:
        (scene,) = data.test
        assert scene.totals.sum() == 75 * 90 - 3
    assert spec.classes[0].color == "#ff0000"


def test_a_configuration_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.toml cannot be read"):
        TrainSpec.from_toml(tmp_path / "none.toml")


def test_paths_are_relative_to_the_configuration(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert TrainSpec.from_toml(config).output == config.parent / "out"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("right.png", "wrong.png", "names no file"),
        ("left/label_*.png", "left/label_0.png", "label_0.png has 70 x 50 px.* and the scene 70 x 101 px"),
        ("mosaic = [1, 2]", "mosaic = [2, 2]", "needs 4"),
        ("mosaic = [1, 2]", "mosaic = [2, 1]", "do not form a 2 x 1 mosaic"),
        ("right_label.png", "left/label_0.png", "label_0.png has 70 x 50 px.* and the scene 75 x 90 px"),
        ('ignored_colors = ["#000000"]', "", r"#000000 \(3 px\)"),
        ("precision", 'bands = ["gray"]\nprecision', "has 3 bands and the configuration names 1"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_training(config: Path, old: str, new: str, words: str) -> None:
    assert old in CONFIG
    config.write_text(CONFIG.replace(old, new, 1))
    with pytest.raises(SourceError, match=words):
        run(TrainSpec.from_toml(config))
    assert not (config.parent / "out").exists()


@pytest.mark.parametrize("name", ["right.png", "right_label.png"])
def test_a_damaged_raster_is_named(config: Path, name: str) -> None:
    path = config.parent / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SourceError, match=name):
        run(TrainSpec.from_toml(config))


def test_initial_weights_that_do_not_exist_are_named(short: TrainSpec, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pth"):
        run(replace(short, init=tmp_path / "none.pth"))


def test_settings_from_the_command_line_are_one_of_two(config: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["atrous", "train", str(config), "--resume", "--overwrite"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "choose one" in capsys.readouterr().err
