import csv
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from pipeline.errors import SourceError, SpecError, WeightsError
from pipeline.network.checkpoint import load_network, read_model_spec
from pipeline.network.spec import ClassSpec, ModelSpec, NetworkSpec
from workflows import train
from workflows.train import SceneMeasured, StepDone, TrainingDivergedError, TrainSpec, run
from workflows.training_data import Augmentation, LabelCoding, LabelledScene, random_window, read_labels
from workflows.training_metrics import SceneMetrics, predict_scene

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
backbone_factor = 0.3
checkpoint_every = 10
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
    assert steps[-1].loss == summary.final_loss < steps[0].loss
    assert [type(event) for event in events[-1:]] == [SceneMeasured]

    (metrics,) = summary.metrics
    assert metrics.mean_iou is not None
    assert metrics.mean_iou > 0.85
    assert sum(map(sum, metrics.confusion)) == 75 * 90 - 3, "three pixels are ignored"

    model = read_model_spec(summary.checkpoint)
    assert [c.name for c in model.classes] == ["dark", "bright"]
    origin = model.provenance
    assert origin["complete"] is True
    assert origin["n_steps_done"] == 50
    assert (origin["trained_on"], origin["tested_on"]) == (["left"], ["right.png"])
    assert origin["metrics"]["right.png"] == metrics.to_dict()
    with summary.metrics_csv.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["dark", "bright", "mean"]
    assert float(rows[-1]["iou"]) == pytest.approx(metrics.mean_iou, abs=1e-4)


def test_the_stored_model_is_the_measured_one(short: TrainSpec) -> None:
    summary = run(short)
    model, network = load_network(summary.checkpoint)
    with rasterio.open(short.test[0].image) as dataset:
        image = dataset.read()
    predicted = predict_scene(network, model, image, window_px=64).argmax(dim=0).numpy()
    labels = (np.arange(90) >= 41) * np.ones((75, 1), dtype=int)
    labels[0, :3] = 2
    right = [int(((predicted == i) & (labels == i)).sum()) for i in range(2)]
    found = [summary.metrics[0].confusion[i][i] for i in range(2)]
    assert np.abs(np.subtract(right, found)).max() <= 5, "folding rounds, so a few pixels may turn"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(short: TrainSpec, tmp_path: Path) -> None:
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


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(short: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.7, 0.6, float("nan")])
    monkeypatch.setattr(train, "_update", lambda *_, **__: next(losses))
    with pytest.raises(TrainingDivergedError, match=r"nan at step 3 of 3.*holds step 2") as caught:
        run(short)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    model, _ = load_network(short.checkpoint_path)
    assert model.provenance["n_steps_done"] == 2
    assert model.provenance["complete"] is False
    assert not (short.output / "metrics.csv").exists()


def test_a_nan_in_the_network_leaves_the_weights_of_the_step_before(short: TrainSpec) -> None:
    network = train.build_network(short.network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    before = network.classifier.weight.detach().clone()
    windows, labels = torch.full((2, 3, 32, 32), float("nan")), torch.zeros(2, 32, 32, dtype=torch.long)
    loss = train._update(network, optimizer, windows, labels, bf16=False)
    assert np.isnan(loss)
    assert torch.equal(network.classifier.weight, before)


def test_a_killed_run_leaves_a_checkpoint_that_loads(short: TrainSpec) -> None:
    def interrupt(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(short, interrupt)
    assert load_network(short.checkpoint_path)[0].provenance["n_steps_done"] == 2


def test_a_batch_without_a_label_changes_no_kernel_by_its_loss(short: TrainSpec) -> None:
    network = train.build_network(short.network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = network.classifier.weight.detach().clone()
    labels = torch.full((2, 32, 32), 255)
    assert train._update(network, optimizer, torch.randn(2, 3, 32, 32), labels, bf16=False) == 0.0
    assert torch.equal(network.classifier.weight, before)


def test_bf16_training_gives_finite_losses(short: TrainSpec) -> None:
    assert np.isfinite(run(replace(short, precision="bf16")).final_loss)


def test_without_mean_and_std_those_of_the_training_scenes_are_stored(short: TrainSpec) -> None:
    model = read_model_spec(run(short).checkpoint)
    scene = train.read_entries(short, short.train)[0].image
    np.testing.assert_allclose(model.mean, scene.mean(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(model.std, scene.std(axis=(1, 2)), rtol=1e-6)


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
        ("learning_rate = 1e-2", "learning_rate = 0", "learning_rate 0"),
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
    (scene,) = train.read_entries(spec, spec.test)
    assert np.bincount(scene.labels.ravel(), minlength=256)[[0, 1]].sum() == 75 * 90 - 3
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
        ("left/label_*.png", "left/label_0.png", "finds 2 files and .* finds 1"),
        ("mosaic = [1, 2]", "mosaic = [2, 2]", "needs 4"),
        ("mosaic = [1, 2]", "mosaic = [2, 1]", "do not form a 2 x 1 mosaic"),
        ("right_label.png", "left/label_0.png", "75 x 90 px and its labels .* are 70 x 50"),
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


def test_without_mosaic_every_file_is_a_scene(config: Path) -> None:
    config.write_text(CONFIG.replace("mosaic = [1, 2]\n", ""))
    spec = TrainSpec.from_toml(config)
    scenes = train.read_entries(spec, spec.train)
    assert [scene.name for scene in scenes] == ["left/image_0.png", "left/image_1.png"]
    assert [scene.labels.shape for scene in scenes] == [(70, 50), (70, 51)]


def test_a_mosaic_is_joined_in_row_order(config: Path) -> None:
    spec = TrainSpec.from_toml(config)
    (scene,) = train.read_entries(spec, spec.train)
    assert scene.image.shape == (3, 70, 101)
    expected = [*[0] * 20, *[1] * 30, *[0] * 21, *[1] * 30]
    assert scene.labels[5].tolist() == expected
    assert scene.labels[0, :4].tolist() == [255, 255, 255, 0]


def test_class_ids_are_read_from_one_band(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [1, 0, 0]], dtype=np.uint8)
    Image.fromarray(ids).save(tmp_path / "ids.png")
    coding = LabelCoding(colors=None, n_classes=2)
    assert read_labels(tmp_path / "ids.png", coding).tolist() == ids.tolist()
    with pytest.raises(SourceError, match=r"labels \[1\]"):
        read_labels(tmp_path / "ids.png", replace(coding, n_classes=1))


def scene_of(shape: tuple[int, int]) -> LabelledScene:
    """A scene whose labels can be read off its image."""
    labels = np.random.default_rng(0).integers(0, 4, (shape[0] // 16 + 1, shape[1] // 16 + 1))
    labels = labels.repeat(16, axis=0).repeat(16, axis=1)[: shape[0], : shape[1]].astype(np.uint8)
    return LabelledScene(name="s", image=np.stack([labels * 50, labels * 20]), labels=labels)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_image_and_labels_of_a_window_stay_together(scale: float) -> None:
    augmentation = Augmentation(scale_range=(scale, scale), jitter=0.0)
    generator = np.random.default_rng(1)
    mirrored = []
    for _ in range(8):
        pixels, labels = random_window(scene_of((150, 170)), 64, augmentation, generator)
        assert pixels.shape == (2, 64, 64)
        assert labels.shape == (64, 64)
        nearest = (pixels[0] / 50).round().long()
        assert float((nearest == labels).float().mean()) > 0.75
        mirrored.append(float((nearest.flip(0) == labels).float().mean()))
    assert np.mean(mirrored) < 0.6


def test_a_window_beyond_the_scene_is_ignored_there() -> None:
    augmentation = Augmentation(scale_range=(1.0, 1.0), jitter=0.0)
    pixels, labels = random_window(scene_of((20, 30)), 64, augmentation, np.random.default_rng(0))
    assert int((labels != 255).sum()) == 20 * 30
    assert bool(torch.isfinite(pixels).all())


def test_all_eight_symmetries_are_drawn() -> None:
    scene = scene_of((64, 64))
    augmentation, generator = Augmentation(scale_range=(1.0, 1.0), jitter=0.0), np.random.default_rng(0)
    drawn = {random_window(scene, 64, augmentation, generator)[1].numpy().tobytes() for _ in range(100)}
    assert len(drawn) == 8


@pytest.mark.parametrize("change", [{"scale_range": (2.0, 1.0)}, {"scale_range": (0.0, 1.0)}, {"jitter": 1.0}])
def test_an_augmentation_that_makes_no_sense_is_refused(change: dict) -> None:
    with pytest.raises(SpecError):
        Augmentation(**change)


def test_iou_follows_from_the_confusion_matrix() -> None:
    metrics = SceneMetrics(scene="s", classes=("a", "b", "c"), confusion=((6, 2, 0), (2, 2, 0), (0, 0, 0)))
    assert metrics.iou == {"a": 0.6, "b": pytest.approx(1 / 3), "c": None}
    assert metrics.mean_iou == pytest.approx((0.6 + 1 / 3) / 2)
    assert metrics.accuracy == pytest.approx(8 / 12)


def test_overlapping_windows_of_a_pointwise_network_give_one_pass() -> None:
    """Every pixel is predicted, at its place, whatever the size of the scene."""

    class Pointwise(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, -x], dim=1)

    model = ModelSpec(
        name="p",
        network=NetworkSpec(n_classes=2, n_bands=1),
        classes=tuple(ClassSpec(name=name, color="#000000") for name in "ab"),
        bands=("gray",),
        mean=(1.0,),
        std=(2.0,),
    )
    for shape in ((1, 20, 31), (1, 101, 77)):
        image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        expected = torch.softmax(torch.tensor(np.concatenate([image - 1, 1 - image]) / 2), dim=0)
        torch.testing.assert_close(predict_scene(Pointwise(), model, image, window_px=32), expected)
