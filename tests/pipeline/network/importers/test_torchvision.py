from functools import cache

import pytest
import torch
from reference_packages import import_torchvision
from reference_twins import TOLERANCE, imported, largest_difference, pixels, shaken, twin
from torch import nn
from torch.nn import functional

from pipeline.errors import SpecError, WeightsError

SMALL_RATES = (2, 4, 6)


def reference(depth: int = 50, stride: int = 8, *, rates: tuple[int, ...] = SMALL_RATES, n_classes: int = 5) -> nn.Module:
    """Its network from its own parts: the constructors have stride 8 and rates 12, 24, 36 built in."""
    segmentation, models = import_torchvision().models.segmentation, import_torchvision().models
    torch.manual_seed(0)
    backbone = getattr(models, f"resnet{depth}")(replace_stride_with_dilation=[False, stride == 8, True])
    features = models._utils.IntermediateLayerGetter(backbone, return_layers={"layer4": "out", "layer3": "aux"})
    head = segmentation.deeplabv3.DeepLabHead(2048, n_classes, atrous_rates=rates)
    auxiliary = segmentation.fcn.FCNHead(1024, n_classes)
    return shaken(segmentation.DeepLabV3(features, head, auxiliary), head[-1])


@cache
@torch.inference_mode(False)  # kept for tests outside that mode too
def released(depth: int) -> nn.Module:
    build = getattr(import_torchvision().models.segmentation, f"deeplabv3_resnet{depth}")
    torch.manual_seed(0)
    network = build(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    return shaken(network, network.classifier[-1])


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("depth", [50, 101])
@torch.inference_mode()
def test_the_twin_gives_the_same_logits(depth: int, stride: int) -> None:
    """On an odd size after the reference's own resizing, since ours resizes by a whole factor whatever the size; else as they are."""
    theirs = reference(depth, stride)
    ours = twin(theirs, output_stride=stride, atrous_rates=SMALL_RATES)
    odd, x = pixels(101, 67), pixels(96, 64)
    resized = functional.interpolate(ours.score(odd), size=odd.shape[-2:], mode="bilinear", align_corners=False)
    assert largest_difference(resized, theirs(odd)["out"]) <= TOLERANCE
    assert largest_difference(ours(x), theirs(x)["out"]) <= TOLERANCE


@pytest.mark.parametrize("depth", [50, 101])
@torch.inference_mode()
def test_the_constructors_network_is_imported_with_its_own_rates(depth: int) -> None:
    """The window is long enough for taps of all three rates to lie inside."""
    theirs, x = released(depth), pixels(57, 313)
    resized = functional.interpolate(twin(theirs).score(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
    assert largest_difference(resized, theirs(x)["out"]) <= TOLERANCE


@torch.inference_mode()
def test_another_rate_would_be_noticed() -> None:
    theirs, x = released(50), pixels(57, 313)
    wrong = twin(theirs, atrous_rates=(12, 24, 34)).score(x)
    assert largest_difference(wrong, twin(theirs).score(x)) > 10 * TOLERANCE


def test_the_auxiliary_head_is_left_out_and_every_other_tensor_is_used() -> None:
    state = released(50).state_dict()
    converted = imported(state)
    used = {key for key in state if not key.startswith("aux_classifier.") and not key.endswith("num_batches_tracked")}
    assert converted.draft.keys.used == used
    assert set(converted.left_out) == state.keys() - used


def test_what_the_keys_cannot_tell_is_said() -> None:
    converted = imported(released(50))
    assert converted.network.spec.output_stride == 8
    assert converted.network.spec.effective_atrous_rates == (12, 24, 36)
    assert len(converted.draft.assumed) == 3
    assert imported(released(50), output_stride=16).network.spec.effective_atrous_rates == (6, 12, 18)


def test_mobilenet_v3_is_refused_with_the_reason() -> None:
    build = import_torchvision().models.segmentation.deeplabv3_mobilenet_v3_large
    with torch.device("meta"):
        state = build(weights=None, weights_backbone=None).state_dict()
    with pytest.raises(WeightsError, match=r"MobileNetV3 has squeeze-and-excitation.*deeplabv3_resnet101 can be imported"):
        imported(state)


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ({"atrous_rates": (12, 24)}, r"2 rates were given; the checkpoint has 3 atrous branches"),
        ({"atrous_rates": (11, 24, 36)}, r"the rates 11, 24, 36 were given for output stride 8.*must be even"),
        ({"output_stride": 4}, r"output_stride.*4"),
    ],
    ids=["too few rates", "odd rate at stride 8", "stride"],
)
def test_a_hint_that_cannot_be_is_refused(hints: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        imported(released(50), **hints)
