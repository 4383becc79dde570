"""A public checkpoint becomes a model: what is written, what is assumed aloud, what is refused, and that nothing is left of a refusal."""

import dataclasses
import json

import pytest
import torch
from factories import lively_network
from torch.nn import functional

from pipeline.errors import SpecError, StoreError, WeightsError
from pipeline.network.checkpoint import load_network
from pipeline.network.importers.layout import IMAGENET_MEAN, Hints
from pipeline.network.spec import NetworkSpec
from pipeline.network.voc import VOC_NAMES, voc_color
from workflows.import_model import ImportRequest, read_classes, run

TWIN = NetworkSpec(
    n_classes=3,
    architecture="deeplabv3",
    backbone="resnet50",
    output_stride=8,
    separable=False,
    context_convolutions=1,
    aspp_channels=8,
)


def torchvision_names(spec):
    """Return our tensor names and those of torchvision's DeepLab v3 on ResNet-50, written down by hand."""
    norm = ("weight", "bias", "running_mean", "running_var")
    layers = {"backbone.stem": ("backbone.conv1", "backbone.bn1")}
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            ours, theirs = f"backbone.stages.{stage}.{block}", f"backbone.layer{stage + 1}.{block}"
            layers |= {f"{ours}.branch.{i}": (f"{theirs}.conv{i + 1}", f"{theirs}.bn{i + 1}") for i in range(3)}
            if block == 0:
                layers[f"{ours}.shortcut"] = (f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    layers |= {f"aspp.branches.{i}": (f"classifier.0.convs.{i}.0", f"classifier.0.convs.{i}.1") for i in range(4)}
    layers["aspp.branches.4.project"] = ("classifier.0.convs.4.1", "classifier.0.convs.4.2")
    layers["aspp.project"] = ("classifier.0.project.0", "classifier.0.project.1")
    layers["context.0"] = ("classifier.1", "classifier.2")
    names = {f"{ours}.conv.weight": f"{conv}.weight" for ours, (conv, _) in layers.items()}
    names |= {f"{ours}.norm.{part}": f"{theirs}.{part}" for ours, (_, theirs) in layers.items() for part in norm}
    return names | {f"classifier.{part}": f"classifier.4.{part}" for part in ("weight", "bias")}


@pytest.fixture(scope="module")
def twin():
    return lively_network(TWIN, seed=1)


@pytest.fixture
def foreign(tmp_path, twin):
    path = tmp_path / "city.pth"
    torch.save(state_of(twin), path)
    return path


def state_of(network):
    tensors = network.state_dict()
    return {theirs: tensors[ours] for ours, theirs in torchvision_names(network.spec).items()}


def request_of(file, **changes):
    return ImportRequest(**{"file": file, "out": file.with_suffix(".safetensors"), **changes})


def test_the_model_computes_what_the_checkpoint_did(foreign, twin):
    report = run(request_of(foreign))
    model, network = load_network(foreign.with_suffix(".safetensors"))
    window = torch.randn(1, 3, 57, 80)
    with torch.inference_mode():
        assert torch.equal(network(window), twin(window))
    assert network.spec == TWIN
    assert (model.name, model.mean, model.licence) == ("city", IMAGENET_MEAN, "unknown")
    assert report.n_tensors == len(torchvision_names(TWIN))
    assert "torchvision" in report.layout


def test_what_was_assumed_is_said_and_kept(foreign):
    report = run(request_of(foreign))
    model, _ = load_network(foreign.with_suffix(".safetensors"))
    assert model.provenance["assumed"] == list(report.assumed)
    for words in ("output stride 8", "atrous rates 12, 24, 36", "123.675, 116.28, 103.53", "class 0 to class 2"):
        assert any(words in sentence for sentence in report.assumed), words


def test_what_was_said_is_not_assumed(foreign, tmp_path):
    (tmp_path / "classes.txt").write_text("land\nwater, #1f78d1\nbuilt up #d7301f\n\n")
    hints = Hints(
        output_stride=16,
        atrous_rates=(3, 6, 9),
        mean=(1.0, 2.0, 3.0),
        std=(4.0, 5.0, 6.0),
        input_range=(0.0, 1.0),
        channel_order="bgr",
    )
    report = run(request_of(foreign, hints=hints, classes=tmp_path / "classes.txt", name="town", licence="MIT"))
    model, network = load_network(foreign.with_suffix(".safetensors"))
    assert report.assumed == ()
    assert [item.name for item in model.classes] == ["land", "water", "built up"]
    assert [item.color for item in model.classes] == [voc_color(0), "#1f78d1", "#d7301f"]
    assert (model.mean, model.std, model.input_range) == ((3.0, 2.0, 1.0), (6.0, 5.0, 4.0), (0.0, 1.0))
    assert (model.name, model.licence) == ("town", "MIT")
    assert (network.spec.output_stride, network.spec.atrous_rates) == (16, (3, 6, 9))


def test_the_first_layer_of_a_bgr_checkpoint_takes_red_first(foreign, twin):
    run(request_of(foreign, hints=Hints(channel_order="bgr")))
    _, network = load_network(foreign.with_suffix(".safetensors"))
    window = torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        torch.testing.assert_close(network(window.flip(1)), twin(window), rtol=1e-3, atol=1e-2)


def test_one_output_channel_is_a_class_against_background(tmp_path):
    twin = lively_network(dataclasses.replace(TWIN, n_classes=1), seed=4)
    torch.save(state_of(twin), tmp_path / "roof.pth")
    report = run(request_of(tmp_path / "roof.pth"))
    _, network = load_network(tmp_path / "roof.safetensors")
    window = torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        found, expected = torch.softmax(network(window), dim=1)[:, 1:], torch.sigmoid(twin(window))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert any("against background" in sentence for sentence in report.assumed)


def test_half_precision_halves_the_file(foreign, tmp_path):
    run(request_of(foreign))
    run(request_of(foreign, out=tmp_path / "half.safetensors", kernels="float16"))
    sizes = [(tmp_path / name).stat().st_size for name in ("city.safetensors", "half.safetensors")]
    assert 1.9 < sizes[0] / sizes[1] < 2.1


def test_twenty_one_classes_are_those_of_voc(tmp_path):
    torch.save(state_of(lively_network(dataclasses.replace(TWIN, n_classes=21))), tmp_path / "voc.pth")
    run(request_of(tmp_path / "voc.pth"))
    model, _ = load_network(tmp_path / "voc.safetensors")
    assert tuple(item.name for item in model.classes) == VOC_NAMES
    assert model.classes[1].color == "#800000"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"hints": Hints(atrous_rates=(6, 12))}, SpecError, "2 rates were given; the checkpoint has 3"),
        ({"hints": Hints(atrous_rates=(3, 6, 9))}, SpecError, "at 8 they must be even"),
        ({"hints": Hints(mean=(0.5,))}, SpecError, "mean has 1 values and the checkpoint has 3"),
        ({"layout": "torchvison"}, SpecError, "did you mean 'torchvision'"),
        ({"classes": "two.txt"}, SpecError, "has 2 classes and the checkpoint 3"),
        ({"classes": "none.txt"}, SpecError, "cannot be read"),
        ({"classes": "empty.txt"}, SpecError, "holds no class"),
        ({"out": "model.pth"}, SpecError, r"try --out .*model\.safetensors"),
        ({"out": "there.safetensors"}, StoreError, "exists and was left as it is"),
    ],
    ids=str,
)
def test_a_request_that_contradicts_the_file_is_refused(foreign, tmp_path, changes, error, words):
    (tmp_path / "two.txt").write_text("land\nwater\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "there.safetensors").write_text("mine")
    paths = {name: tmp_path / value for name, value in changes.items() if name in ("classes", "out")}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=words):
        run(request_of(foreign, **{**changes, **paths}))
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("classifier.1.weight"), r"1 tensors are missing \[classifier.1.weight\] and 0 are left over"),
        (lambda state: state.update({"classifier.5.weight": torch.zeros(1)}), r"0 tensors are missing \[\] and 1 are left over"),
        (lambda state: state["classifier.2.bias"].fill_(float("nan")), r"1 tensors hold NaN or infinity \[classifier.2.bias\]"),
        (
            lambda state: state.update({"classifier.1.weight": torch.zeros(8, 8, 5, 5)}),
            r"classifier.1.weight is \(8, 8, 5, 5\); torchvision's DeepLab v3 has \(8, 8, 3, 3\) there",
        ),
    ],
    ids=["missing", "extra", "NaN", "shape"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, twin, change, words):
    state = {name: tensor.clone() for name, tensor in state_of(twin).items()}
    change(state)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=words):
        run(request_of(tmp_path / "odd.pth"))
    assert [path.name for path in tmp_path.iterdir()] == ["odd.pth"]


def test_classes_without_colours_get_those_of_voc(tmp_path):
    (tmp_path / "classes.txt").write_text("  first class \n second\t#ABCDEF\n")
    assert [(item.name, item.color) for item in read_classes(tmp_path / "classes.txt")] == [
        ("first class", voc_color(0)),
        ("second", "#ABCDEF"),
    ]


def test_the_report_is_plain_json(foreign):
    assert json.loads(json.dumps(dataclasses.asdict(run(request_of(foreign)))))["assumed"]


def test_the_last_upsampling_is_by_a_whole_factor(foreign):
    """So that it does not depend on the window: the scores of cell 0 lie over the first eight pixels whatever the size."""
    run(request_of(foreign))
    _, network = load_network(foreign.with_suffix(".safetensors"))
    window = torch.randn(1, 3, 41, 57)
    with torch.inference_mode():
        scores, logits = network.score(window), network(window)
    expected = functional.interpolate(scores, scale_factor=8, mode="bilinear", align_corners=False)[..., :41, :57]
    torch.testing.assert_close(logits, expected)
