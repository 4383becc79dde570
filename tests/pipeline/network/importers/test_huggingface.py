import json
from pathlib import Path

import pytest
import torch
from reference_packages import import_torchvision
from reference_twins import TOLERANCE, imported, largest_difference, pixels, shaken, twin
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import SpecError, WeightsError
from pipeline.network.importers.state import read_config, read_state

EXPANDED = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160)
GIVEN = (*EXPANDED[1:], 320)


def layer(name: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A convolution with its normalisation; every tensor has its own values."""
    n_out = shape[0]
    parts = {part: torch.rand(n_out) + 0.5 for part in ("weight", "bias", "running_mean", "running_var")}
    named = {f"{name}.normalization.{part}": tensor for part, tensor in parts.items()}
    return {
        f"{name}.convolution.weight": torch.randn(shape) / shape[1] ** 0.5,
        f"{name}.normalization.num_batches_tracked": torch.tensor(7),
        **named,
    }


def published(n_classes: int = 21) -> dict[str, Tensor]:
    """Names and shapes of the published checkpoint, written from the library's modules, with random values."""
    torch.manual_seed(0)
    stem, body, head = "mobilenet_v2.conv_stem", "mobilenet_v2.layer", "segmentation_head"
    state = {
        **layer(f"{stem}.first_conv", (32, 3, 3, 3)),
        **layer(f"{stem}.conv_3x3", (32, 1, 3, 3)),
        **layer(f"{stem}.reduce_1x1", (16, 32, 1, 1)),
    }
    for index, (n_in, n_out) in enumerate(zip(EXPANDED, GIVEN, strict=True)):
        state |= layer(f"{body}.{index}.expand_1x1", (6 * n_in, n_in, 1, 1))
        state |= layer(f"{body}.{index}.conv_3x3", (6 * n_in, 1, 3, 3))
        state |= layer(f"{body}.{index}.reduce_1x1", (n_out, 6 * n_in, 1, 1))
    state |= layer("mobilenet_v2.conv_1x1", (1280, 320, 1, 1))
    state |= layer(f"{head}.conv_pool", (256, 320, 1, 1))
    state |= layer(f"{head}.conv_aspp", (256, 320, 1, 1))
    state |= layer(f"{head}.conv_projection", (256, 512, 1, 1))
    state[f"{head}.classifier.convolution.weight"] = torch.randn(n_classes, 256, 1, 1)
    state[f"{head}.classifier.convolution.bias"] = torch.randn(n_classes)
    return state


def test_every_tensor_of_the_published_checkpoint_is_accounted_for() -> None:
    state = published()
    converted = imported(state)
    unused = {key for key in state if "num_batches" in key or key.startswith("mobilenet_v2.conv_1x1.")}
    assert set(converted.left_out) == unused
    assert converted.draft.keys.used == state.keys() - unused
    ours = converted.network
    assert torch.equal(ours.backbone.blocks[16].depthwise.conv.weight, state["mobilenet_v2.layer.15.conv_3x3.convolution.weight"])
    assert torch.equal(ours.aspp.branches[1].project.norm.bias, state["segmentation_head.conv_pool.normalization.bias"])


def test_the_image_level_branch_comes_first_in_theirs_and_last_in_ours() -> None:
    state = published()
    theirs = state["segmentation_head.conv_projection.convolution.weight"]
    ours = imported(state).network.aspp.project.conv.weight
    assert torch.equal(ours[:, 256:], theirs[:, :256])
    assert torch.equal(ours[:, :256], theirs[:, 256:])


def test_without_a_configuration_the_published_one_is_assumed_and_said() -> None:
    converted = imported(published())
    spec = converted.network.spec
    assert (spec.output_stride, spec.backbone_eps, spec.alignment, spec.n_classes) == (8, 1e-3, "corner", 21)
    assert (converted.preprocessing.mean, converted.preprocessing.std) == ((127.5,) * 3, (127.5,) * 3)
    assert len(converted.draft.assumed) == 4
    assert "output stride 8" in converted.draft.assumed[0]


def test_the_configuration_is_heeded_and_leaves_out_what_is_the_librarys_default() -> None:
    converted = imported(published(), {"model_type": "mobilenet_v2", "output_stride": 16, "layer_norm_eps": 1e-5})
    assert (converted.network.spec.output_stride, converted.network.spec.backbone_eps) == (16, 1e-5)
    assert len(converted.draft.assumed) == 2
    assert imported(published(), {"model_type": "mobilenet_v2"}).network.spec.output_stride == 32
    assert imported(published(), {"model_type": "segformer", "output_stride": 16}).network.spec.output_stride == 8
    hinted = imported(published(), {"model_type": "mobilenet_v2", "output_stride": 16}, output_stride=8, align_corners=False)
    assert (hinted.network.spec.output_stride, hinted.network.spec.alignment) == (8, "centre")


def test_rates_are_refused_for_a_network_without_atrous_branches() -> None:
    with pytest.raises(SpecError, match="3 rates were given; the checkpoint has 0"):
        imported(published(), atrous_rates=(6, 12, 18))


def test_another_activation_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"hidden_act 'swish'.*relu6"):
        imported(published(), {"model_type": "mobilenet_v2", "hidden_act": "swish"})


def test_channels_that_were_rounded_otherwise_are_refused() -> None:
    """At half width the library rounds 12 channels to 16; TensorFlow's release, which ours follows, does not."""
    state = {key: tensor[: -(-tensor.shape[0] // 2)] if tensor.ndim else tensor for key, tensor in published().items()}
    name = "mobilenet_v2.layer.0.reduce_1x1.convolution.weight"
    assert state[name].shape[0] == 12
    with pytest.raises(WeightsError, match=r"\[16, 12, 16.*depth multiplier of 0\.5 those of TensorFlow's release have \[12, 12"):
        imported({**state, name: torch.zeros(16, 48, 1, 1)})


@pytest.fixture(scope="module")
def library():
    """transformers, where it is installed."""
    import_torchvision()
    return pytest.importorskip("transformers", exc_type=ImportError)


def reference(library, **choices: object) -> nn.Module:
    torch.manual_seed(0)
    config = library.MobileNetV2Config(num_labels=5, **choices)
    network = library.MobileNetV2ForSemanticSegmentation(config)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # the library's own initial weights are so small that nothing varies
            nn.init.kaiming_normal_(module.weight)
    return shaken(network, network.segmentation_head.classifier.convolution)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
@pytest.mark.parametrize("stride", [8, 16, 32])
@torch.inference_mode()
def test_the_library_gives_the_same_scores(library, stride: int, eps: float) -> None:
    """On sizes of k * stride + 1, on which TensorFlow's padding is symmetric."""
    theirs = reference(library, output_stride=stride, layer_norm_eps=eps)
    ours = twin(theirs, theirs.config.to_dict())
    x = pixels(129, 97)
    assert largest_difference(ours.score(x), theirs(x).logits) <= TOLERANCE


@torch.inference_mode()
def test_scores_are_resized_corner_to_corner_as_in_tensorflow(library) -> None:
    theirs = reference(library, output_stride=16)
    x = pixels(129, 97)
    right = functional.interpolate(theirs(x).logits, size=(129, 97), mode="bilinear", align_corners=True)
    assert largest_difference(twin(theirs, theirs.config.to_dict())(x), right) <= TOLERANCE


@torch.inference_mode()
def test_the_folder_that_the_library_saves_is_read_with_its_configuration(library, tmp_path: Path) -> None:
    theirs = reference(library, output_stride=16)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    assert json.loads((tmp_path / "config.json").read_text())["output_stride"] == 16
    ours = imported(read_state(file), read_config(file)).network
    x = pixels(65, 97)
    assert largest_difference(ours.score(x), theirs(x).logits) <= TOLERANCE
