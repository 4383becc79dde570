"""TensorFlow's DeepLab v3 on MobileNetV2 with folded normalisations: an independent forward, and the released networks on a photo."""

import numpy as np
import pytest
import torch
from PIL import Image
from reference_keys import Keys, layer, resized
from reference_twins import TOLERANCE, imported, largest_difference, pixels

from pipeline.errors import SpecError, WeightsError
from pipeline.network.importers.state import read_state

BLOCKS = (1, *(2,) * 2, *(3,) * 3, *(4,) * 4, *(5,) * 3, *(6,) * 3, 7)
"""Stage of each of the 17 blocks."""
CHANNELS = {1: 16, 2: 24, 3: 32, 4: 64, 5: 96, 6: 160, 7: 320}
FIRST_STRIDES = {2: 2, 3: 2, 4: 2, 6: 2}
BIRD, DOG, NAMES = 3, 12, ("deeplabv3_mnv2_pascal_quant", "deeplabv3_257_mv_gpu")


def folded(*, width):
    """A state dict of random values at a width of 1 or 0.5."""
    keys, n_in = Keys(), int(32 * width)
    keys.conv("stem", 3, n_in, 3, bias=True, gain=1.4)
    for index, stage in enumerate(BLOCKS):
        hidden, n_out = n_in * (6 if index else 1), int(CHANNELS[stage] * width)
        if index:
            keys.conv(f"blocks.{index}.expand", n_in, hidden, bias=True, gain=1.4)
        keys.conv(f"blocks.{index}.depthwise", hidden, hidden, 3, groups=hidden, bias=True, gain=1.4)
        keys.conv(f"blocks.{index}.project", hidden, n_out, bias=True)
        n_in = n_out
    for name, n_from, n_to in (("image_pooling", n_in, 256), ("aspp0", n_in, 256), ("concat_projection", 512, 256)):
        keys.conv(name, n_from, n_to, bias=True, gain=1.4)
    keys.conv("logits", 256, 21, bias=True, gain=2)
    return keys.state


def reference_logits(state, x, stride):
    """Whole network on sides of k * stride + 1: from the first stride too many on, each doubles the rate of the blocks behind it."""
    size = x.shape[-2:]
    x = layer(state, x, "stem", stride=2).clamp(max=6)
    reached, rate, stage_before = 2, 1, 1
    for index, stage in enumerate(BLOCKS):
        step = FIRST_STRIDES.get(stage, 1) if stage != stage_before else 1
        is_kept = reached * step <= stride
        y = layer(state, x, f"blocks.{index}.expand").clamp(max=6) if index else x
        y = layer(state, y, f"blocks.{index}.depthwise", stride=step if is_kept else 1, rate=rate).clamp(max=6)
        y = layer(state, y, f"blocks.{index}.project", relu=False)
        x = x + y if x.shape == y.shape else y
        reached, rate, stage_before = reached * (step if is_kept else 1), rate * (1 if is_kept else step), stage
    pooled = layer(state, x.mean((2, 3), keepdim=True), "image_pooling")
    near = layer(state, x, "aspp0")
    context = layer(state, torch.cat([pooled.expand_as(near), near], dim=1), "concat_projection")
    return resized(layer(state, context, "logits", relu=False), size, align_corners=True)


@pytest.mark.parametrize(("width", "stride"), [(1, 16), (0.5, 8), (1, 8), (0.5, 16)])
def test_logits_equal_those_of_an_independent_forward(width, stride):
    """On sides of k * 16 + 1, which TensorFlow's networks are made for."""
    state, x = folded(width=width), pixels(97, 129)
    with torch.inference_mode():
        right = reference_logits(state, x, stride)
        ours = imported(state, output_stride=stride).network(x)
    assert largest_difference(ours, right) <= TOLERANCE


def test_every_tensor_is_taken_and_the_normalisations_only_add_the_bias():
    state = folded(width=0.5)
    converted = imported(state)
    assert converted.draft.keys.used == set(state)
    assert converted.left_out == ()
    norm = converted.network.backbone.blocks[4].depthwise.norm
    x = torch.randn(1, norm.num_features, 3, 4)
    assert torch.allclose(norm(x), x + state["blocks.4.depthwise.bias"].view(1, -1, 1, 1), atol=1e-6)


@pytest.mark.parametrize(("width", "stride"), [(1, 16), (0.5, 8)])
def test_what_the_keys_cannot_tell_is_said(width, stride):
    converted = imported(folded(width=width))
    said = " | ".join(converted.draft.assumed)
    for part in (f"output stride {stride}", "align_corners=True", "minus 127.5, 127.5, 127.5, divided by 127.5, 127.5, 127.5"):
        assert part in said
    assert (converted.network.spec.backbone_width, converted.network.spec.output_stride) == (width, stride)
    told = imported(folded(width=width), output_stride=16, align_corners=False, mean=(0,) * 3, std=(1,) * 3)
    assert (told.network.spec.output_stride, told.network.spec.alignment, told.preprocessing.mean) == (16, "centre", (0, 0, 0))


@pytest.mark.parametrize("key", ["stem.weight", "blocks.7.depthwise.bias", "image_pooling.weight", "logits.weight"])
def test_a_missing_tensor_is_named(key):
    state = folded(width=0.5)
    del state[key]
    with pytest.raises(WeightsError, match=key):
        imported(state)


def test_a_left_over_tensor_is_named():
    with pytest.raises(WeightsError, match=r"1 are left over \[aspp1\.weight\]"):
        imported({**folded(width=0.5), "aspp1.weight": torch.zeros(1)})


def test_rates_are_refused_since_this_network_has_none():
    with pytest.raises(SpecError, match="the checkpoint has 0 atrous branches"):
        imported(folded(width=0.5), atrous_rates=(6, 12, 18))


def test_multi_grid_is_as_it_is_said_to_be():
    assert imported(folded(width=0.5)).network.spec.multi_grid == (1, 1, 1)
    assert imported(folded(width=0.5), multi_grid=(1, 2, 4)).network.spec.multi_grid == (1, 2, 4)


def test_weights_of_an_image_classifier_are_not_taken_for_it():
    classifier = {name: tensor for name, tensor in folded(width=1).items() if name.startswith(("stem", "blocks"))}
    with pytest.raises(WeightsError, match="none of the known layouts"):
        imported(classifier)


@pytest.fixture(scope="module", params=NAMES)
def released(request, shared):
    return request.param, imported(read_state(shared / "weights" / f"{request.param}.torch.pth"))


def labels(converted, photo, side):
    window = photo.resize((side, side), Image.Resampling.BILINEAR) if photo.size != (side, side) else photo
    x = (torch.tensor(np.asarray(window), dtype=torch.float32) - 127.5) / 127.5
    with torch.inference_mode():
        return converted.network(x.permute(2, 0, 1)[None])[0].argmax(0).numpy()


SIDES = dict(zip(NAMES, (513, 257), strict=True))


@pytest.mark.shared
def test_the_released_networks_find_the_bird(released, shared):
    """TFLite's own run of the two files agrees with the mask on 97.9 and 96.7 % of these pixels."""
    name, converted = released
    found = labels(converted, Image.open(shared / "weights" / "bird_segmentation.bmp"), SIDES[name])
    mask = Image.open(shared / "weights" / "bird_segmentation_mask.bmp").resize(found.shape, Image.Resampling.NEAREST)
    assert set(np.unique(found)) == {0, BIRD}
    assert (found == np.asarray(mask)).mean() >= {513: 0.97, 257: 0.96}[SIDES[name]]


@pytest.mark.shared
def test_the_released_networks_find_the_dog(released, shared):
    """The mask is 0 on the animal, 1 around it, 2 on the outline, which is left out."""
    name, converted = released
    found = labels(converted, Image.open(shared / "weights" / "dog_segmentation.bmp"), SIDES[name])
    mask = np.asarray(Image.open(shared / "weights" / "dog_segmentation_mask.bmp").resize(found.shape, Image.Resampling.NEAREST))
    assert (found == np.where(mask == 0, DOG, 0))[mask < 2].mean() >= 0.98
