import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from network_contract import ODD_SHAPE, RAGGED_SHAPE, RULES, calibrated
from reference_packages import import_smp, import_torchvision

from pipeline.errors import SpecError
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.footprint import n_parameters
from pipeline.network.multiscale import MultiScale
from pipeline.network.spec import MultiScaleSpec, NetworkSpec
from pipeline.network.variants import variant, variant_names

# One contract for all


@pytest.fixture(scope="module", params=variant_names())
def network(request: pytest.FixtureRequest) -> DeepLab:
    """The variant for five bands and seven classes; one is alive at a time, since the largest takes 0.5 GB."""
    return calibrated(variant(request.param, n_classes=7, n_bands=5).network)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_variant_keeps_the_contract(network: DeepLab, rule: Any, tmp_path: Path) -> None:
    rule(network, tmp_path)


@pytest.mark.parametrize("name", variant_names())
def test_the_logits_of_the_named_sizes_have_21_classes(name: str) -> None:
    network = without_values(variant(name).network)
    for shape in (ODD_SHAPE, RAGGED_SHAPE, (1, 7)):
        assert network(torch.empty(2, 3, *shape, device="meta")).shape == (2, 21, *shape)


@pytest.mark.parametrize("name", variant_names())
def test_every_parameter_of_a_variant_has_a_gradient(name: str) -> None:
    network = without_values(variant(name).network)
    network(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()
    assert [parameter for parameter, value in network.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", variant_names())
def test_the_scales_of_a_variant_keep_the_size(name: str) -> None:
    found = variant(name)
    system = MultiScale(without_values(found.network), found.multiscale)
    assert system(torch.empty(1, 3, 64, 96, device="meta")).shape == (1, 21, 64, 96)


@cache
def without_values(spec: NetworkSpec) -> DeepLab:
    with torch.device("meta"):
        return build_network(spec).eval()


# Names and hyperparameters


def test_the_family_has_25_named_variants_each_found_by_its_name() -> None:
    assert len(set(variant_names())) == len(variant_names()) == 25
    assert all(variant(name).name == name for name in variant_names())


def test_no_two_variants_are_the_same_and_largefov_of_v1_and_v2_differ_by_name_only() -> None:
    systems = {
        name: json.dumps([variant(name).network.to_dict(), variant(name).multiscale.to_dict()]) for name in variant_names()
    }
    assert len(set(systems.values())) == len(systems)
    v1, v2 = (variant(f"{paper}-vgg16-largefov").network for paper in ("deeplabv1", "deeplabv2"))
    assert replace(v1, architecture="deeplabv2") == v2


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(SpecError, match=r"'deeplabv2-resnet101-asppl' is not .* did you mean 'deeplabv2-resnet101-aspp-l'\?"):
        variant("deeplabv2-resnet101-asppl")


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(SpecError, match=r"known are: deeplabv1-vgg16-4x4, .*deeplabv3plus-xception65-os8"):
        variant("u-net")


def test_classes_and_bands_change_nothing_else() -> None:
    changed, named = variant("deeplabv3-resnet50", n_classes=5, n_bands=8), variant("deeplabv3-resnet50")
    assert (changed.network.n_classes, changed.network.n_bands) == (5, 8)
    assert replace(changed.network, n_classes=21, n_bands=3) == named.network
    assert (changed.multiscale, changed.source) == (named.multiscale, named.source)


def test_resnets_of_v2_see_three_scales_and_take_the_maximum() -> None:
    seen = {name: variant(name).multiscale for name in variant_names()}
    fused = MultiScaleSpec(scales=(0.5, 0.75, 1.0), fusion="max")
    assert {name for name, scales in seen.items() if scales == fused} == {
        f"deeplabv2-resnet101-{context}" for context in ("largefov", "aspp-s", "aspp-l")
    }
    assert {scales for scales in seen.values() if scales != fused} == {MultiScaleSpec()}


def rates_of(network: DeepLab) -> list[int]:
    """The atrous rates of all 3 x 3 convolutions, in the order in which they were built."""
    return [m.dilation[0] for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("deeplabv3-resnet50", [1] * 13 + [2, 4, 8] + [6, 12, 18]),
        ("deeplabv3-resnet50-os8", [1] * 7 + [2] * 6 + [4, 8, 16] + [12, 24, 36]),
        ("deeplabv3-resnet50-cascade", [1] * 13 + [2, 4, 2] + [4, 8, 4] + [8, 16, 8] + [16, 32, 16]),
        ("deeplabv2-resnet101-aspp-l", [1] * 7 + [2] * 23 + [4] * 3 + [6, 12, 18, 24]),
        ("deeplabv1-vgg16-largefov", [1] * 10 + [2] * 3 + [12]),
        ("deeplabv3-mobilenet_v2", [1] * 15 + [2] * 3),
        ("deeplabv3plus-mobilenet_v2", [1] * 15 + [2] * 3 + [6, 12, 18] + [1, 1]),
    ],
)
def test_the_atrous_rates_are_those_of_the_paper(name: str, rates: list[int]) -> None:
    assert rates_of(without_values(variant(name).network)) == rates


# Parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("deeplabv1-vgg16-7x7", 134.3),
        ("deeplabv1-vgg16-4x4", 65.1),
        ("deeplabv1-vgg16-4x4-r8", 65.1),
        ("deeplabv1-vgg16-largefov", 20.5),
    ],
)
def test_v1_has_as_many_parameters_as_its_table_2_says(name: str, millions: float) -> None:
    assert round(n_parameters(variant(name).network) / 1e6, 1) == millions


def test_msc_adds_five_branches_of_two_convolutions_and_640_channels_before_the_last_layer() -> None:
    added = sum(9 * n * 128 + 128 + 128 * 128 + 128 for n in (3, 64, 128, 256, 512)) + 5 * 128 * 21
    for base in ("4x4", "largefov"):
        name = "deeplabv1-vgg16-msc" if base == "4x4" else f"deeplabv1-vgg16-msc-{base}"
        assert n_parameters(variant(name).network) - n_parameters(variant(f"deeplabv1-vgg16-{base}").network) == added


def n_values(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_v3_has_as_many_parameters_as_torchvisions(backbone: str) -> None:
    build = getattr(import_torchvision().models.segmentation, f"deeplabv3_{backbone}")
    with torch.device("meta"):
        reference = build(weights=None, weights_backbone=None, num_classes=21, aux_loss=False)
    ours = variant(f"deeplabv3-{backbone}").network
    between = n_values(reference.classifier[1]) + n_values(reference.classifier[2])
    assert n_parameters(ours) == n_values(reference) - between, "torchvision has a 3 x 3 convolution between ASPP and classifier"
    assert n_parameters(replace(ours, context_convolutions=1)) == n_values(reference)


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "mobilenet_v2"])
@pytest.mark.parametrize("family", ["DeepLabV3", "DeepLabV3Plus"])
def test_v3_and_v3plus_have_as_many_parameters_as_smps(family: str, backbone: str) -> None:
    with torch.device("meta"):
        reference = getattr(import_smp(), family)(backbone, encoder_weights=None, classes=21)
    has_decoder = family == "DeepLabV3Plus"
    ours = NetworkSpec(
        n_classes=21,
        architecture="deeplabv3plus" if has_decoder else "deeplabv3",
        backbone=backbone,
        final_expansion=backbone == "mobilenet_v2",
        separable=has_decoder,
        separable_norm=False,
        context_convolutions=1,
        decoder_convolutions=1,
    )
    assert n_parameters(ours) == n_values(reference)


def test_xception_65_has_as_many_parameters_as_timms() -> None:
    import_smp()  # brings timm, and what it imports of torchvision
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        reference = timm.create_model("xception65", pretrained=False, num_classes=0)
    assert n_values(without_values(variant("deeplabv3plus-xception65").network).backbone) == n_values(reference)
