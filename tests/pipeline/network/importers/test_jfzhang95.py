"""jfzhang95's DeepLab v3+: names and order of layers are from its public description; its code is not installed here."""

import pytest
import torch
from reference_keys import RESNET101, Keys, layer, resized, resnet_stages
from reference_twins import TOLERANCE, imported, largest_difference, pixels
from torch.nn import functional

from pipeline.errors import SpecError, WeightsError

STRIDES = {16: (1, 2, 2, 1), 8: (1, 2, 1, 1)}
BLOCK_RATES = {16: (1, 1, 1, 2), 8: (1, 1, 2, 4)}
RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
GRID = (1, 2, 4)


@pytest.fixture(scope="module")
def state():
    """A whole checkpoint, as its training writes it."""
    keys = Keys()
    keys.resnet("backbone.", RESNET101)
    for index in range(4):
        keys.conv(f"aspp.aspp{index + 1}.atrous_conv", 2048, 256, 1 if index == 0 else 3)
        keys.norm(f"aspp.aspp{index + 1}.bn", 256)
    layers = (
        ("aspp.global_avg_pool.1", "aspp.global_avg_pool.2", 2048, 256, 1),
        ("aspp.conv1", "aspp.bn1", 1280, 256, 1),
        ("decoder.conv1", "decoder.bn1", 256, 48, 1),
        ("decoder.last_conv.0", "decoder.last_conv.1", 304, 256, 3),
        ("decoder.last_conv.4", "decoder.last_conv.5", 256, 256, 3),
    )
    for conv, norm, n_in, n_out, kernel in layers:
        keys.conv(conv, n_in, n_out, kernel)
        keys.norm(norm, n_out)
    keys.conv("decoder.last_conv.8", 256, 21, bias=True)
    return keys.state


def reference_logits(state, x, stride):
    """Whole network: multi-grid in the last stage, image-level branch last, everything resized with ``align_corners=True``."""
    grids = [(1,) * depth for depth in RESNET101[:3]] + [GRID]
    rates = [[rate * factor for factor in grid] for rate, grid in zip(BLOCK_RATES[stride], grids, strict=True)]
    stem = functional.max_pool2d(layer(state, x, "backbone.conv1", "backbone.bn1", stride=2), 3, 2, 1)
    low, high = resnet_stages(state, "backbone.", stem, list(zip(STRIDES[stride], rates, strict=True)))
    branches = [
        layer(state, high, f"aspp.aspp{index + 1}.atrous_conv", f"aspp.aspp{index + 1}.bn", rate=rate)
        for index, rate in enumerate((1, *RATES[stride]))
    ]
    pooled = layer(state, high.mean((2, 3), keepdim=True), "aspp.global_avg_pool.1", "aspp.global_avg_pool.2")
    joined = torch.cat([*branches, pooled.expand_as(branches[0])], dim=1)
    context = resized(layer(state, joined, "aspp.conv1", "aspp.bn1"), low.shape[-2:], align_corners=True)
    joined = torch.cat([context, layer(state, low, "decoder.conv1", "decoder.bn1")], dim=1)
    for index in (0, 4):
        joined = layer(state, joined, f"decoder.last_conv.{index}", f"decoder.last_conv.{index + 1}")
    return resized(layer(state, joined, "decoder.last_conv.8", relu=False), x.shape[-2:], align_corners=True)


@pytest.mark.parametrize("stride", [16, 8])
def test_logits_equal_those_of_an_independent_forward(state, stride):
    """On sides of k * 16 + 1, on which ``align_corners=True`` enlarges by whole factors; it was trained on 513 x 513."""
    x = pixels(65, 97)
    with torch.inference_mode():
        right = reference_logits(state, x, stride)
        ours = imported(state, output_stride=stride).network(x)
        without_grid = imported(state, output_stride=stride, multi_grid=(1, 1, 1)).network(x)
    assert largest_difference(ours, right) <= TOLERANCE
    assert largest_difference(without_grid, right) > 100 * TOLERANCE


def test_every_tensor_is_taken_or_a_counter_of_batches(state):
    converted = imported(state)
    assert converted.draft.keys.used | set(converted.left_out) == set(state)
    assert all(key.endswith("num_batches_tracked") for key in converted.left_out)


def test_the_early_decoder_without_dropout_has_other_numbers(state):
    moved = {"4": "3", "5": "4", "8": "6"}
    early = {}
    for name, tensor in state.items():
        head, _, rest = name.partition("last_conv.")
        number, _, part = rest.partition(".")
        early[f"{head}last_conv.{moved.get(number, number)}.{part}" if rest else name] = tensor
    network = imported(early).network
    assert torch.equal(network.classifier.weight, state["decoder.last_conv.8.weight"])
    assert torch.equal(network.decoder.refine[1].conv.weight, state["decoder.last_conv.4.weight"])


def test_what_the_keys_cannot_tell_is_said(state):
    said = " | ".join(imported(state).draft.assumed)
    for part in ("output stride 16", "atrous rates 6, 12, 18", "multi-grid rates 1, 2, 4", "align_corners=True", "RGB"):
        assert part in said
    told = imported(state, output_stride=8, align_corners=False)
    assert (told.network.spec.output_stride, told.network.spec.alignment) == (8, "centre")
    assert told.network.spec.effective_atrous_rates == RATES[8]
    assert "atrous rates 12, 24, 36" in " | ".join(told.draft.assumed)


@pytest.mark.parametrize(
    "key",
    [
        "backbone.conv1.weight",
        "backbone.layer2.0.downsample.0.weight",
        "backbone.layer3.22.conv2.weight",
        "aspp.global_avg_pool.2.running_mean",
        "decoder.last_conv.8.weight",
    ],
)
def test_a_missing_tensor_is_named(state, key):
    with pytest.raises(WeightsError, match=key):
        imported({name: tensor for name, tensor in state.items() if name != key})


def test_a_left_over_tensor_is_named(state):
    with pytest.raises(WeightsError, match=r"1 are left over \[decoder\.last_conv\.9\.weight\]"):
        imported({**state, "decoder.last_conv.9.weight": torch.zeros(1)})


def test_another_number_of_rates_than_branches_is_refused(state):
    with pytest.raises(SpecError, match="the checkpoint has 3 atrous branches"):
        imported(state, atrous_rates=(6, 12))


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("backbone.block1.rep.0.conv1.weight", "Xception"),
        ("backbone.low_level_features.0.0.weight", "MobileNetV2"),
        ("backbone.layer5.0.conv1.weight", "DRN"),
    ],
)
def test_other_backbones_are_refused_by_name(state, key, found):
    head = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    with pytest.raises(WeightsError, match=f"on {found} "):
        imported({**head, key: torch.zeros(1)})
