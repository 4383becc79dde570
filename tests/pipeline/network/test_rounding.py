"""Kernels in 16 bits: what that does to the mean of an output is made up for, and labels stay nearer to those of float32."""

from pathlib import Path

import pytest
import rasterio
import torch
from factories import tiny_model_spec
from torch import nn

from pipeline.network.checkpoint import load_network
from pipeline.network.convolution import ConvNormActivation
from pipeline.network.deeplab import build_network
from pipeline.network.fold import fold_batch_norm
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.multiscale import MultiScale
from pipeline.network.rounding import _mean_above_zero, _put_mean, fold_for, input_means, keep_biases, make_up
from pipeline.network.spec import MultiScaleSpec
from pipeline.network.variants import variant

SCENE = Path(__file__).parents[3] / "examples" / "dubai-tile2.tif"


@pytest.fixture(scope="module")
def shipped():
    return MultiScale(load_network(resolve_model(DEFAULT_MODEL))[1], MultiScaleSpec())


def logits(network, window):
    with torch.inference_mode():
        return network(window)


def rounded(network):
    """Round all kernels in place."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.bfloat16().float()
    return network


def test_the_mean_of_a_cut_off_normal_is_that_of_a_sample():
    mean, deviation = torch.tensor([-2.0, 0.0, 1.5, 30.0]), torch.tensor([1.0, 2.0, 0.5, 1.0])
    sample = torch.randn(400_000, 4, generator=torch.Generator().manual_seed(0)) * deviation + mean
    torch.testing.assert_close(_mean_above_zero(mean, deviation), sample.clamp_min(0).mean(0), atol=0.01, rtol=0)


@pytest.mark.parametrize("activation", ["relu", "relu6", "none"])
def test_the_mean_of_an_input_is_that_behind_normalisation_and_activation(activation):
    """Of the second of two blocks: the first is normalised as its statistics say, whatever the image."""
    network = build_network(tiny_model_spec().network).eval()
    means = input_means(network)
    torch.manual_seed(0)
    block = ConvNormActivation(nn.Conv2d(3, 8, 1), activation=activation)
    nn.init.uniform_(block.norm.weight, 0.2, 3)
    nn.init.uniform_(block.norm.bias, -2, 8)
    with torch.no_grad():
        block.train()
        out = block(
            torch.randn(64, 3, 64, 64)
        )  # normalised over the batch: each channel is normal with mean beta and deviation gamma
    expected = _put_mean(block, (), torch.zeros(1, 8, 1, 1))[0, :, 0, 0]
    torch.testing.assert_close(expected, out.mean(dim=(0, 2, 3)), atol=0.03, rtol=0.01)
    assert means.keys() == {name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}


@pytest.mark.parametrize(("groups", "bias"), [(1, True), (4, False), (8, True), (2, False)])
def test_an_input_that_is_its_mean_gives_what_the_kernel_gave_before_it_was_rounded(groups, bias):
    torch.manual_seed(1)
    layer, mean = nn.Conv2d(8, 16, 3, groups=groups, bias=bias), torch.rand(8) * 6
    window = mean[None, :, None, None].expand(1, 8, 5, 5)
    expected = logits(layer, window)
    assert not torch.allclose(logits(rounded(nn.ModuleList([layer]))[0], window), expected, atol=1e-4)
    torch.manual_seed(1)
    layer = nn.Conv2d(8, 16, 3, groups=groups, bias=bias)
    make_up(layer, mean, torch.bfloat16)
    torch.testing.assert_close(logits(rounded(nn.ModuleList([layer]))[0], window), expected, atol=1e-5, rtol=0)


def test_looking_for_means_leaves_the_network_as_it_was(shipped):
    window = torch.randn(1, 3, 64, 64)
    before = logits(shipped, window)
    input_means(shipped)
    assert torch.equal(logits(shipped, window), before)


@pytest.mark.parametrize("name", ["deeplabv1-vgg16-largefov", "deeplabv2-vgg16-aspp-l"])
def test_a_network_without_normalisation_is_left_as_it_is(name):
    with torch.device("meta"):
        assert input_means(build_network(variant(name).network)) == {}


def test_without_rounding_nothing_is_made_up_for(shipped):
    window = torch.randn(1, 3, 64, 64)
    assert torch.equal(logits(fold_for(shipped, None), window), logits(fold_batch_norm(shipped), window))


def test_a_bias_that_is_added_late_is_the_same_bias(shipped):
    window, folded = torch.randn(1, 3, 64, 64), fold_batch_norm(shipped)
    before = logits(folded, window)
    keep_biases(folded, torch.bfloat16)
    assert all(layer.conv.bias is None for layer in folded.modules() if isinstance(layer, ConvNormActivation))
    torch.testing.assert_close(logits(folded, window), before, atol=1e-4, rtol=1e-4)


def test_of_the_labels_that_rounded_kernels_change_most_stay(shipped):
    with rasterio.open(SCENE) as scene:
        pixels = torch.from_numpy(scene.read(window=((200, 712), (300, 812)))[None].astype("float32"))
    window = (pixels - 127.5) / 127.5
    labels = logits(fold_batch_norm(shipped), window).argmax(1)
    changed = [
        (logits(rounded(network), window).argmax(1) != labels).float().mean()
        for network in (fold_batch_norm(shipped), fold_for(shipped, torch.bfloat16))
    ]
    assert changed[1] < changed[0] / 3
    assert changed[1] < 0.01
