"""VainF's code cannot be installed here: names, shapes and order of operations are written from its public modules.

Its backbones are torchvision's, renamed, except for where MobileNetV2 adds zeros; its heads are written out below.
"""

from collections import OrderedDict
from functools import partial

import pytest
import torch
from reference_packages import import_torchvision
from reference_twins import TOLERANCE, imported, largest_difference, pixels, shaken, twin
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import WeightsError

SMALL_RATES = (2, 4, 6)


def unit(conv: nn.Module, n_out: int) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(n_out), nn.ReLU()]


def dense(n_in: int, n_out: int, *, rate: int = 1) -> nn.Module:
    return nn.Conv2d(n_in, n_out, 3, padding=rate, dilation=rate, bias=False)


class Separable(nn.Module):
    """What ``--separable_conv`` makes of a 3 x 3 convolution."""

    def __init__(self, n_in: int, n_out: int, *, rate: int = 1) -> None:
        super().__init__()
        depthwise = nn.Conv2d(n_in, n_in, 3, padding=rate, dilation=rate, groups=n_in, bias=False)
        self.body = nn.Sequential(depthwise, nn.Conv2d(n_in, n_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Pyramid(nn.Module):
    def __init__(self, n_in: int, rates: tuple[int, ...], conv=dense) -> None:
        super().__init__()
        one = partial(nn.Conv2d, kernel_size=1, bias=False)
        self.convs = nn.ModuleList([nn.Sequential(*unit(one(n_in, 256), 256))])
        self.convs.extend(nn.Sequential(*unit(conv(n_in, 256, rate=rate), 256)) for rate in rates)
        self.convs.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *unit(one(n_in, 256), 256)))
        self.project = nn.Sequential(*unit(one(256 * (2 + len(rates)), 256), 256), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        *branches, pooled = [conv(x) for conv in self.convs]
        pooled = functional.interpolate(pooled, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*branches, pooled], dim=1))


class Head(nn.Module):
    def __init__(self, n_in: int, n_classes: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.classifier = nn.Sequential(Pyramid(n_in, rates), *unit(dense(256, 256), 256), nn.Conv2d(256, n_classes, 1))

    def forward(self, _low_level: Tensor, x: Tensor) -> Tensor:
        return self.classifier(x)


class PlusHead(nn.Module):
    def __init__(self, n_in: int, n_low: int, n_classes: int, rates: tuple[int, ...], conv=dense) -> None:
        super().__init__()
        self.project = nn.Sequential(*unit(nn.Conv2d(n_low, 48, 1, bias=False), 48))
        self.aspp = Pyramid(n_in, rates, conv)
        self.classifier = nn.Sequential(*unit(conv(304, 256), 256), nn.Conv2d(256, n_classes, 1))

    def forward(self, low_level: Tensor, x: Tensor) -> Tensor:
        low_level = self.project(low_level)
        spread = functional.interpolate(self.aspp(x), size=low_level.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(torch.cat([low_level, spread], dim=1))


class Reference(nn.Module):
    def __init__(self, backbone: OrderedDict[str, nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = nn.ModuleDict(backbone), classifier
        self.low_level_name = next(name for name in ("layer1", "low_level_features") if name in backbone)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low_level = x
        for name, module in self.backbone.items():
            x = module(x)
            low_level = x if name == self.low_level_name else low_level
        return low_level, x

    def scores(self, x: Tensor) -> Tensor:
        return self.classifier(*self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.scores(x), size=x.shape[-2:], mode="bilinear", align_corners=False)


def resnet(depth: int, stride: int) -> OrderedDict[str, nn.Module]:
    build = getattr(import_torchvision().models, f"resnet{depth}")
    network = build(replace_stride_with_dilation=[False, stride == 8, True])
    return OrderedDict((name, module) for name, module in network.named_children() if name not in ("avgpool", "fc"))


def mobilenet(stride: int) -> OrderedDict[str, nn.Module]:
    """torchvision's MobileNetV2 with the rates of VainF's: the block in which a stride became a rate has the rate before it."""
    features = import_torchvision().models.mobilenet_v2().features[:-1]
    reached, rate = 1, 1
    for feature in features:
        conv = next(module for module in feature.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3))
        wanted = conv.stride[0]
        conv.stride = wanted if reached * wanted <= stride else 1
        conv.dilation = conv.padding = rate
        reached, rate = reached * conv.stride, rate * wanted // conv.stride
        conv.stride, conv.dilation, conv.padding = ((value,) * 2 for value in (conv.stride, conv.dilation, conv.padding))
    return OrderedDict(low_level_features=features[:4], high_level_features=features[4:])


class PaddedFirst(nn.Module):
    """A block as VainF has it: zeros are added before its first convolution, and pass through it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.conv, self.use_res_connect = block.conv, block.use_res_connect
        depthwise = next(module for module in block.modules() if isinstance(module, nn.Conv2d) and module.groups > 1)
        self.amount, depthwise.padding = depthwise.padding[0], (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(functional.pad(x, (self.amount,) * 4))
        return x + out if self.use_res_connect else out


def as_vainf_pads(network: Reference) -> Reference:
    for part in network.backbone.values():
        for name, feature in list(part.named_children()):
            if name == "0":
                feature[0].padding = (0, 0)
            else:
                setattr(part, name, PaddedFirst(feature))
    return network


def reference(
    architecture: str, backbone: str, stride: int, *, conv=dense, rates: tuple[int, ...] = SMALL_RATES, n_classes: int = 5
) -> Reference:
    torch.manual_seed(0)
    layers = mobilenet(stride) if backbone == "mobilenet" else resnet(int(backbone.removeprefix("resnet")), stride)
    n_low, n_high = (24, 320) if backbone == "mobilenet" else (256, 2048)
    plus = partial(PlusHead, n_high, n_low, n_classes, rates, conv)
    head = plus() if architecture == "v3+" else Head(n_high, n_classes, rates)
    return shaken(Reference(layers, head), head.classifier[-1])


CASES = [
    (architecture, backbone, stride)
    for architecture in ("v3", "v3+")
    for backbone, stride in (("resnet50", 8), ("resnet50", 16), ("resnet101", 16), ("mobilenet", 8), ("mobilenet", 16))
]


@pytest.mark.parametrize(("architecture", "backbone", "stride"), CASES, ids=str)
@torch.inference_mode()
def test_the_twin_computes_what_vainfs_modules_compute(architecture: str, backbone: str, stride: int) -> None:
    """Scores on an odd size, where theirs resizes them by no whole factor; logits on multiples of the stride, where both do the same."""
    theirs = reference(architecture, backbone, stride)
    ours = twin(theirs, output_stride=stride, atrous_rates=SMALL_RATES)
    odd, x = pixels(9 * stride - 3, 7 * stride - 1), pixels(9 * stride, 7 * stride)
    assert largest_difference(ours.score(odd), theirs.scores(odd)) <= TOLERANCE
    assert largest_difference(ours(x), theirs(x)) <= TOLERANCE


@torch.inference_mode()
def test_separable_heads_are_known_too() -> None:
    theirs = reference("v3+", "mobilenet", 16, conv=Separable)
    assert "classifier.classifier.0.body.1.weight" in theirs.state_dict()
    x = pixels(144, 112)
    ours = twin(theirs, output_stride=16, atrous_rates=SMALL_RATES)
    assert largest_difference(ours(x), theirs(x)) <= TOLERANCE


@torch.inference_mode()
def test_mobilenet_as_vainf_pads_it_is_the_same_one_pixel_further_away_from_the_edges() -> None:
    """Its features see zeros at other places, so that those at the edges differ; no cell of the middle sees an edge."""
    theirs = reference("v3+", "mobilenet", 16)
    ours = twin(theirs, output_stride=16, atrous_rates=SMALL_RATES)
    as_vainf_pads(theirs)
    x = pixels(593, 561)
    right = theirs.features(x)
    moved, unmoved = ours.features(x[..., 1:, 1:]), ours.features(x)
    for index, middle in enumerate((slice(20, 100), slice(16, 20))):
        at = (..., middle, middle)
        assert relative_difference(moved[index][at], right[index][at]) <= TOLERANCE
        assert relative_difference(unmoved[index][at], right[index][at]) > 0.1


def relative_difference(given: Tensor, right: Tensor) -> float:
    """The largest difference, in units of how much the features vary from place to place."""
    return float((given - right).abs().max() / right.std(dim=(2, 3)).mean())


NAMES = {
    "v3-resnet50": {
        "backbone.conv1.weight": (64, 3, 7, 7),
        "backbone.layer4.2.bn3.running_var": (2048,),
        "classifier.classifier.0.convs.0.0.weight": (256, 2048, 1, 1),
        "classifier.classifier.0.convs.4.1.weight": (256, 2048, 1, 1),
        "classifier.classifier.0.project.0.weight": (256, 1280, 1, 1),
        "classifier.classifier.1.weight": (256, 256, 3, 3),
        "classifier.classifier.4.weight": (21, 256, 1, 1),
    },
    "v3+-mobilenet": {
        "backbone.low_level_features.0.0.weight": (32, 3, 3, 3),
        "backbone.low_level_features.3.conv.2.weight": (24, 144, 1, 1),
        "backbone.high_level_features.4.conv.0.0.weight": (144, 24, 1, 1),
        "backbone.high_level_features.17.conv.3.bias": (320,),
        "classifier.project.0.weight": (48, 24, 1, 1),
        "classifier.aspp.convs.1.0.weight": (256, 320, 3, 3),
        "classifier.classifier.0.weight": (256, 304, 3, 3),
        "classifier.classifier.3.bias": (21,),
    },
}
"""Names and shapes that the project's own code spells, as far as they were read there."""


@pytest.mark.parametrize(("architecture", "backbone"), [("v3", "resnet50"), ("v3+", "mobilenet")])
def test_the_names_are_vainfs_and_every_tensor_is_accounted_for(architecture: str, backbone: str) -> None:
    state = reference(architecture, backbone, 16, n_classes=21).state_dict()
    for name, shape in NAMES[f"{architecture}-{backbone}"].items():
        assert tuple(state[name].shape) == shape
    converted = imported(state)
    assert all(key.endswith("num_batches_tracked") for key in converted.left_out)
    assert converted.draft.keys.used | set(converted.left_out) == state.keys()


def test_low_level_features_come_first_in_theirs_and_last_in_ours() -> None:
    state = reference("v3+", "mobilenet", 16).state_dict()
    theirs, ours = state["classifier.classifier.0.weight"], imported(state).network.decoder.refine[0].conv.weight
    assert torch.equal(ours[:, 256:], theirs[:, :48])
    assert torch.equal(ours[:, :256], theirs[:, 48:])


@pytest.mark.parametrize(("stride", "rates"), [(None, (6, 12, 18)), (16, (6, 12, 18)), (8, (12, 24, 36))])
def test_rates_follow_the_stride_and_what_was_assumed_is_said(stride: int | None, rates: tuple[int, ...]) -> None:
    converted = imported(reference("v3", "mobilenet", 16), output_stride=stride)
    assert converted.network.spec.output_stride == (stride or 16)
    assert converted.network.spec.effective_atrous_rates == rates
    told = "; ".join(converted.draft.assumed)
    assert ("os16 or os8" in told) is (stride is None)
    assert f"rates {', '.join(map(str, rates))}" in told
    assert "shift of one pixel" in told


@pytest.mark.parametrize(
    ("key", "family"),
    [("backbone.stage4.0.branches.0.0.conv1.weight", "HRNet"), ("backbone.block1.rep.0.conv1.weight", "Xception")],
)
def test_another_backbone_is_refused_by_name(key: str, family: str) -> None:
    state = reference("v3+", "mobilenet", 16).state_dict()
    head = {name: tensor for name, tensor in state.items() if name.startswith("classifier.")}
    with pytest.raises(WeightsError, match=rf"{family}.*resnet50, resnet101 and mobilenet"):
        imported({**head, "backbone.conv1.weight": torch.zeros(64, 3, 3, 3), key: torch.zeros(8, 8, 1, 1)})
