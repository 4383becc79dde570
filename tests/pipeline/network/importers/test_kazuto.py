"""kazuto1011's DeepLab v2: names and order of layers are from its public description; its code is not installed here."""

import pytest
import torch
from reference_keys import RESNET101, Keys, layer, resized
from reference_twins import TOLERANCE, imported, largest_difference, pixels
from torch.nn import functional

from pipeline.errors import SpecError, WeightsError

RATES = (6, 12, 18, 24)
BLOCK_RATES = (1, 1, 2, 4)


@pytest.fixture(scope="module")
def state():
    """A whole checkpoint, as its training writes it."""
    keys = Keys()
    keys.conv("base.layer1.conv1.conv", 3, 64, 7)
    keys.norm("base.layer1.conv1.bn", 64)
    n_in = 64
    for stage, depth in enumerate(RESNET101):
        width = 64 * 2**stage
        for block in range(depth):
            name = f"base.layer{stage + 2}.block{block + 1}"
            shapes = {"reduce": (n_in, width, 1), "conv3x3": (width, width, 3), "increase": (width, 4 * width, 1)}
            shapes |= {"shortcut": (n_in, 4 * width, 1)} if block == 0 else {}
            for part, (a, b, kernel) in shapes.items():
                keys.conv(f"{name}.{part}.conv", a, b, kernel)
                keys.norm(f"{name}.{part}.bn", b)
            n_in = 4 * width
    for index in range(len(RATES)):
        keys.conv(f"base.aspp.c{index}", n_in, 21, 3, bias=True)
    return keys.state


def reference_scores(state, x):
    """Scores of one scale: stride in the first convolution of a block, pooling with ``ceil_mode``, branches summed."""

    def part(x, name, **choices):
        return layer(state, x, f"{name}.conv", f"{name}.bn", **choices)

    x = functional.max_pool2d(part(x, "base.layer1.conv1", stride=2), 3, 2, 1, ceil_mode=True)
    for stage, depth in enumerate(RESNET101):
        for block in range(depth):
            name, stride = f"base.layer{stage + 2}.block{block + 1}", 2 if (stage, block) == (1, 0) else 1
            y = part(part(x, f"{name}.reduce", stride=stride), f"{name}.conv3x3", rate=BLOCK_RATES[stage])
            y = part(y, f"{name}.increase", relu=False)
            x = functional.relu(y + (part(x, f"{name}.shortcut", stride=stride, relu=False) if block == 0 else x))
    return sum(layer(state, x, f"base.aspp.c{index}", rate=rate, relu=False) for index, rate in enumerate(RATES))


def test_scores_equal_those_of_an_independent_forward(state):
    """On sides of k * 8 + 1, at which pooling with ``ceil_mode`` adds nothing; they blow the cells up to the exact size, not 8-fold."""
    x, converted = pixels(65, 97), imported(state)
    with torch.inference_mode():
        right = resized(reference_scores(state, x), x.shape[-2:], align_corners=False)
        ours = resized(converted.network.score(x.flip(1)), x.shape[-2:], align_corners=False)  # ours sees red first
    assert largest_difference(ours, right) <= TOLERANCE


def test_ceil_mode_adds_a_row_and_a_column_on_other_sizes_as_the_import_says(state):
    with torch.inference_mode():
        assert reference_scores(state, pixels(64, 96)).shape[-2:] == (9, 13)
        converted = imported(state)
        assert converted.network.score(pixels(64, 96)).shape[-2:] == (8, 12)
    assert any("ceil_mode" in sentence for sentence in converted.draft.assumed)


def test_every_tensor_is_taken_or_a_counter_of_batches(state):
    converted = imported(state)
    assert converted.draft.keys.used | set(converted.left_out) == set(state)
    assert all(key.endswith("num_batches_tracked") for key in converted.left_out)


def test_conversions_of_the_caffe_models_have_the_same_names_without_base(state):
    converted = imported({name.removeprefix("base."): tensor for name, tensor in state.items()})
    assert converted.layout.name == "kazuto1011"
    assert torch.equal(converted.network.head.branches[3].fc8.bias, state["base.aspp.c3.bias"])


def test_the_model_sees_red_first_and_is_meant_for_three_scales(state):
    converted = imported(state)
    first = converted.network.backbone.stem.conv.weight
    assert torch.equal(first, state["base.layer1.conv1.conv.weight"].flip(1))
    assert converted.preprocessing.mean == (122.675, 116.669, 104.008)
    assert converted.preprocessing.std == (1, 1, 1)
    assert (converted.draft.multiscale.scales, converted.draft.multiscale.fusion) == ((0.5, 0.75, 1.0), "max")


def test_what_the_keys_cannot_tell_is_said(state):
    said = " | ".join(imported(state).draft.assumed)
    for part in ("output stride 8", "atrous rates 6, 12, 18, 24", "align_corners=False", "BGR", "0.5, 0.75, 1"):
        assert part in said
    told = imported(state, output_stride=8, atrous_rates=(2, 4, 8, 12), align_corners=False)
    assert told.network.spec.atrous_rates == (2, 4, 8, 12)
    assert "output stride" not in " | ".join(told.draft.assumed)


@pytest.mark.parametrize(
    "key", ["base.layer1.conv1.conv.weight", "base.layer4.block23.conv3x3.bn.running_var", "base.aspp.c2.bias"]
)
def test_a_missing_tensor_is_named(state, key):
    with pytest.raises(WeightsError, match=key):
        imported({name: tensor for name, tensor in state.items() if name != key})


def test_a_left_over_tensor_is_named(state):
    with pytest.raises(WeightsError, match=r"1 are left over \[base\.layer6\.weight\]"):
        imported({**state, "base.layer6.weight": torch.zeros(1)})


def test_another_number_of_rates_than_branches_is_refused(state):
    with pytest.raises(SpecError, match="the checkpoint has 4 atrous branches"):
        imported(state, atrous_rates=(6, 12))


def test_the_same_projects_v3_is_refused_by_name(state):
    v3 = {"base.layer2.block1.reduce.conv.weight": torch.zeros(1), "base.aspp.stages.c0.conv.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match="only DeepLab v2"):
        imported(v3)


def test_a_resnet_of_another_depth_is_refused_with_its_depth(state):
    shorter = {name: tensor for name, tensor in state.items() if not name.startswith("base.layer2.block3.")}
    with pytest.raises(WeightsError, match=r"\(2, 4, 23, 3\)"):
        imported(shorter)
