"""mmsegmentation's DeepLab v3 and v3+: names and order of layers are from its public description; its code is not installed here."""

import pytest
import torch
from reference_keys import RESNET50, Keys, layer, resized, resnet_stages
from reference_twins import TOLERANCE, imported, largest_difference, pixels
from torch.nn import functional

from pipeline.errors import SpecError, WeightsError

CHANNELS = 32  # 512 in its configurations; the importer reads it from the tensors
STAGES = {  # (stride, rates of the blocks), with contract_dilation
    8: [(1, (1,) * 3), (2, (1,) * 4), (1, (1, *(2,) * 5)), (1, (2, 4, 4))],
    16: [(1, (1,) * 3), (2, (1,) * 4), (2, (1,) * 6), (1, (1, 2, 2))],
}
RATES = {8: (1, 12, 24, 36), 16: (1, 6, 12, 18)}


def module(keys, name, n_in, n_out, kernel=1, *, groups=1):
    """Convolution and normalisation as mmcv names them."""
    keys.conv(f"decode_head.{name}.conv", n_in, n_out, kernel, groups=groups, gain=1.5)
    keys.norm(f"decode_head.{name}.bn", n_out)


def separable(keys, name, n_in, n_out):
    module(keys, f"{name}.depthwise_conv", n_in, n_in, 3, groups=n_in)
    module(keys, f"{name}.pointwise_conv", n_in, n_out)


def backbone(*, is_deep):
    keys = Keys()
    if is_deep:
        for index, (n_in, n_out) in enumerate(((3, 32), (32, 32), (32, 64))):
            keys.conv(f"backbone.stem.{3 * index}", n_in, n_out, 3)
            keys.norm(f"backbone.stem.{3 * index + 1}", n_out)
    keys.resnet("backbone.", RESNET50)
    return keys


@pytest.fixture(scope="module")
def v3():
    """deeplabv3_r50-d8: ResNetV1c, auxiliary head."""
    keys = backbone(is_deep=True)
    for index in range(4):
        module(keys, f"aspp_modules.{index}", 2048, CHANNELS, 1 if index == 0 else 3)
    module(keys, "image_pool.1", 2048, CHANNELS)
    module(keys, "bottleneck", 5 * CHANNELS, CHANNELS, 3)
    keys.conv("decode_head.conv_seg", CHANNELS, 19, bias=True)
    keys.conv("auxiliary_head.convs.0.conv", 1024, 8, 3)
    keys.norm("auxiliary_head.convs.0.bn", 8)
    keys.conv("auxiliary_head.conv_seg", 8, 19, bias=True)
    return keys.state


@pytest.fixture(scope="module")
def v3plus():
    """deeplabv3plus on a ResNet with the plain stem."""
    keys = backbone(is_deep=False)
    module(keys, "aspp_modules.0", 2048, CHANNELS)
    for index in (1, 2, 3):
        separable(keys, f"aspp_modules.{index}", 2048, CHANNELS)
    module(keys, "image_pool.1", 2048, CHANNELS)
    module(keys, "bottleneck", 5 * CHANNELS, CHANNELS, 3)
    module(keys, "c1_bottleneck", 256, 48)
    separable(keys, "sep_bottleneck.0", CHANNELS + 48, CHANNELS)
    separable(keys, "sep_bottleneck.1", CHANNELS, CHANNELS)
    keys.conv("decode_head.conv_seg", CHANNELS, 19, bias=True)
    return keys.state


def reference_scores(state, x, stages, rates):
    """What the head gives before the last resizing: image-level branch first, a 3 x 3 projection, then the decoder of v3+ if there."""

    def part(x, name, **choices):
        name = f"decode_head.{name}"
        if f"{name}.conv.weight" in state:
            return layer(state, x, f"{name}.conv", f"{name}.bn", **choices)
        x = layer(state, x, f"{name}.depthwise_conv.conv", f"{name}.depthwise_conv.bn", **choices)
        return layer(state, x, f"{name}.pointwise_conv.conv", f"{name}.pointwise_conv.bn")

    if "backbone.stem.0.weight" in state:
        for index, stride in ((0, 2), (3, 1), (6, 1)):
            x = layer(state, x, f"backbone.stem.{index}", f"backbone.stem.{index + 1}", stride=stride)
    else:
        x = layer(state, x, "backbone.conv1", "backbone.bn1", stride=2)
    low, high = resnet_stages(state, "backbone.", functional.max_pool2d(x, 3, 2, 1), stages)
    branches = [part(high, f"aspp_modules.{index}", rate=rate) for index, rate in enumerate(rates)]
    pooled = part(high.mean((2, 3), keepdim=True), "image_pool.1")
    joined = part(torch.cat([pooled.expand_as(branches[0]), *branches], dim=1), "bottleneck")
    if "decode_head.c1_bottleneck.conv.weight" in state:
        fine = part(low, "c1_bottleneck")
        joined = torch.cat([resized(joined, fine.shape[-2:], align_corners=False), fine], dim=1)
        joined = part(part(joined, "sep_bottleneck.0"), "sep_bottleneck.1")
    return layer(state, joined, "decode_head.conv_seg", relu=False)


@pytest.mark.parametrize("stride", [8, 16])
def test_v3_scores_equal_those_of_an_independent_forward_on_odd_sizes(v3, stride):
    """Both resized in their way: ours would enlarge by a whole factor whatever the size, so that windows agree."""
    x = pixels(75, 101)
    with torch.inference_mode():
        right = resized(reference_scores(v3, x, STAGES[stride], RATES[stride]), x.shape[-2:], align_corners=False)
        ours = resized(imported(v3, output_stride=stride).network.score(x), x.shape[-2:], align_corners=False)
    assert largest_difference(ours, right) <= TOLERANCE


@pytest.mark.parametrize("stride", [8, 16])
def test_v3plus_logits_equal_those_of_an_independent_forward(v3plus, stride):
    """On multiples of the stride, on which its decoder, too, enlarges by whole factors."""
    x = pixels(80, 112)
    with torch.inference_mode():
        right = resized(reference_scores(v3plus, x, STAGES[stride], RATES[stride]), x.shape[-2:], align_corners=False)
        ours = imported(v3plus, output_stride=stride).network(x)
    assert largest_difference(ours, right) <= TOLERANCE


def test_its_multi_grid_names_the_rates_themselves(v3):
    x, stages = pixels(75, 101), [*STAGES[16][:3], (1, (1, 2, 4))]
    with torch.inference_mode():
        right = reference_scores(v3, x, stages, RATES[16])
        ours = imported(v3, output_stride=16, multi_grid=(1, 2, 4)).network.score(x)
    assert largest_difference(ours, right) <= TOLERANCE
    with pytest.raises(SpecError, match="multiples of 2, 4, 4"):
        imported(v3, output_stride=8, multi_grid=(1, 2, 4))


def test_every_tensor_is_taken_or_belongs_to_training(v3, v3plus):
    for state in (v3, v3plus):
        converted = imported(state)
        assert converted.draft.keys.used | set(converted.left_out) == set(state)
        assert all(key.endswith("num_batches_tracked") or key.startswith("auxiliary_head.") for key in converted.left_out)


def test_what_the_keys_cannot_tell_is_said(v3):
    said = " | ".join(imported(v3).draft.assumed)
    for part in ("output stride 8", "atrous rates 1, 12, 24, 36", "contract_dilation", "align_corners=False", "RGB"):
        assert part in said
    for rates in ((6, 12, 18), (1, 6, 12, 18)):  # with and without the branch that they count as one of rate 1
        assert imported(v3, output_stride=16, atrous_rates=rates).network.spec.atrous_rates == (6, 12, 18)
    with pytest.raises(SpecError, match="the checkpoint has 3 atrous branches"):
        imported(v3, atrous_rates=(12, 24))


@pytest.mark.parametrize(
    "key",
    [
        "backbone.conv1.weight",
        "backbone.layer4.0.downsample.0.weight",
        "decode_head.bottleneck.conv.weight",
        "decode_head.c1_bottleneck.conv.weight",
        "decode_head.sep_bottleneck.0.pointwise_conv.conv.weight",
        "decode_head.aspp_modules.2.depthwise_conv.bn.bias",
    ],
)
def test_a_missing_tensor_is_named(v3plus, key):
    with pytest.raises(WeightsError, match=key):
        imported({name: tensor for name, tensor in v3plus.items() if name != key})


def test_a_left_over_tensor_is_named(v3):
    with pytest.raises(WeightsError, match=r"1 are left over \[decode_head\.extra\.weight\]"):
        imported({**v3, "decode_head.extra.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("decode_head.bottleneck.depthwise_conv.conv.weight", "separable bottleneck"),
        ("backbone.layer1.0.downsample.2.weight", "ResNet V1d"),
        ("backbone.layer1.0.conv.0.conv.weight", "MobileNetV2"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(v3, key, found):
    with pytest.raises(WeightsError, match=found):
        imported({**v3, key: torch.zeros(1)})


def test_shallow_resnets_are_refused_since_only_half_of_a_block_is_atrous_there(v3):
    shallow = {name: tensor for name, tensor in v3.items() if ".conv3." not in name}
    names = {name for name in shallow if name.startswith("backbone.layer")}
    kept = {name for name in names if int(name.split(".")[2]) < 2}
    with pytest.raises(WeightsError, match="resnet18"):
        imported({name: tensor for name, tensor in shallow.items() if name not in names or name in kept})
