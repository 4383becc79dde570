import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_reach import linear, measured_reach
from network_contract import RULES, calibrated

from pipeline.network import backbones
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.multiscale import MultiScale
from pipeline.network.receptive_field import _Follow, margin_px, receptive_field
from pipeline.network.spec import MultiScaleSpec, NetworkSpec
from pipeline.network.variants import variant


def spec_of(**changes: object) -> NetworkSpec:
    small = {
        "n_classes": 2,
        "n_bands": 1,
        "atrous_rates": (1, 2),
        "aspp_channels": 4,
        "low_level_channels": 4,
        "decoder_channels": 4,
        "image_pooling": "off",
    }
    return NetworkSpec(**{**small, **changes})


LIVELY = {"atrous_rates": (1,), "n_bands": 2, "aspp_channels": 16, "decoder_channels": 16}

CASES = [
    pytest.param(spec_of(), id="output stride 16"),
    pytest.param(spec_of(padding="tf_same"), id="TF SAME"),
    pytest.param(spec_of(output_stride=8, atrous_rates=(1,)), id="output stride 8"),
    pytest.param(spec_of(separable=False), id="plain convolutions"),
    pytest.param(spec_of(atrous_rates=(6, 12, 18)), id="the paper's rates"),
    pytest.param(spec_of(alignment="corner"), id="corners aligned"),
    pytest.param(spec_of(multi_grid=(1, 2, 4)), id="multi-grid"),
    pytest.param(
        spec_of(architecture="deeplabv1", side_channels=4, head_channels=4, output_stride=8, atrous_rates=(12,)), id="MSc"
    ),
]


def without_pooling(name: str, **changes: object) -> NetworkSpec:
    """The network of a named variant, its image-level branch left out."""
    return replace(variant(name).network, **{"image_pooling": "off", **changes})


VARIANTS = [
    pytest.param(without_pooling("deeplabv1-vgg16-largefov"), id="VGG LargeFOV"),
    pytest.param(without_pooling("deeplabv1-vgg16-4x4-r8"), id="VGG 4 x 4"),
    pytest.param(without_pooling("deeplabv1-vgg16-msc"), id="VGG MSc"),
    pytest.param(without_pooling("deeplabv2-vgg16-aspp-l"), id="VGG ASPP-L"),
    pytest.param(without_pooling("deeplabv2-resnet101-aspp-l"), id="ResNet-101 ASPP-L"),
    pytest.param(
        without_pooling("deeplabv2-resnet101-aspp-l", bottleneck_stride="3x3"), id="ResNet-101 ASPP-L, stride in the 3 x 3"
    ),
    pytest.param(without_pooling("deeplabv3-resnet50", stem="deep"), id="v3, deep stem"),
    pytest.param(without_pooling("deeplabv3-resnet50-os8"), id="v3, output stride 8"),
    pytest.param(without_pooling("deeplabv3-resnet50-cascade"), id="cascade"),
    pytest.param(without_pooling("deeplabv3-mobilenet_v2"), id="MobileNetV2, corners aligned"),
    pytest.param(without_pooling("deeplabv3plus-resnet50", alignment="corner"), id="v3+, corners aligned"),
    pytest.param(without_pooling("deeplabv3plus-xception65"), id="Xception-65"),
    pytest.param(without_pooling("deeplabv3plus-xception65", padding="tf_same"), id="Xception-65, TF SAME"),
]


@pytest.mark.parametrize("spec", CASES + VARIANTS)
def test_the_computed_reach_is_the_measured_one(spec: NetworkSpec) -> None:
    reach = receptive_field(spec)
    assert reach is not None
    network, has_middle = linear(build_network(spec)), spec.head_kernel % 2
    found = measured_reach(network, half_px=max(reach.before_px, reach.after_px) + 40, strip_px=0 if has_middle else 128)
    assert found == (reach.before_px, reach.after_px)


@pytest.mark.parametrize("spec", [spec_of(), without_pooling("deeplabv1-vgg16-msc-largefov")], ids=["v3+", "MSc"])
def test_rows_and_columns_have_the_same_reach(spec: NetworkSpec) -> None:
    network = linear(build_network(spec))
    assert measured_reach(network, half_px=400, axis=2) == measured_reach(network, half_px=400, axis=3)


THREE_SCALES = (0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("spec", "scales"),
    [
        pytest.param(
            without_pooling("deeplabv2-vgg16-largefov"), MultiScaleSpec(scales=THREE_SCALES, fusion="max"), id="VGG LargeFOV"
        ),
        pytest.param(
            without_pooling("deeplabv2-resnet101-aspp-l"),
            variant("deeplabv2-resnet101-aspp-l").multiscale,
            id="ResNet-101 ASPP-L",
        ),
        pytest.param(spec_of(), MultiScaleSpec(scales=THREE_SCALES, flip=True), id="v3+, mirrored"),
        pytest.param(spec_of(), MultiScaleSpec(flip=True), id="v3+, mirrored only"),
        pytest.param(
            spec_of(alignment="corner"), MultiScaleSpec(scales=(0.5, 1.0), flip=True), id="v3+, corners aligned, mirrored"
        ),
        pytest.param(spec_of(), MultiScaleSpec(scales=(1.0, 1.25)), id="v3+, enlarged"),
    ],
)
def test_the_computed_reach_over_scales_is_the_measured_one_or_less_than_a_cell_more(
    spec: NetworkSpec, scales: MultiScaleSpec
) -> None:
    reach = receptive_field(spec, scales)
    assert reach is not None
    system = MultiScale(linear(build_network(spec)), scales)
    before, after = measured_reach(system, half_px=max(reach.before_px, reach.after_px) + 40, period_px=4 * spec.output_stride)
    assert before <= reach.before_px <= before + spec.output_stride
    assert after <= reach.after_px <= after + spec.output_stride


def field_px(spec: NetworkSpec, *, behind_aspp: bool = False) -> Fraction:
    """The side of the square that one cell of the scores, before they are enlarged, depends on."""
    with torch.device("meta"):
        network, window = build_network(spec).eval(), torch.empty(1, spec.n_bands, 256, 256)
    with torch.no_grad(), _Follow(window) as follow:
        cells = network.aspp(network.features(window).high_level) if behind_aspp else network.score(window)
    reach = follow.reach_of(cells)
    assert reach is not None
    return reach.high - reach.low + 1


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param(without_pooling("deeplabv1-vgg16-largefov"), 435, id="VGG LargeFOV"),
        pytest.param(without_pooling("deeplabv2-vgg16-aspp-l"), 627, id="VGG ASPP-L"),
        pytest.param(without_pooling("deeplabv2-resnet101-aspp-l", bottleneck_stride="3x3"), 1403, id="ResNet-101 ASPP-L"),
        pytest.param(without_pooling("deeplabv2-resnet101-aspp-l"), 1411, id="ResNet-101 ASPP-L, stride in the 1 x 1"),
        pytest.param(without_pooling("deeplabv3-resnet101"), 1835, id="v3 on ResNet-101"),
    ],
)
def test_the_receptive_field_of_a_cell_is_that_worked_out_by_hand(spec: NetworkSpec, expected: int) -> None:
    """Worked out from the layer lists of the papers, without this code."""
    assert field_px(spec) == expected


@pytest.mark.parametrize("name", ["deeplabv3plus-xception65", "deeplabv3plus-xception65-os8"])
def test_xceptions_context_sees_2491_pixels_at_both_output_strides(name: str) -> None:
    assert field_px(without_pooling(name), behind_aspp=True) == 2491


@pytest.mark.parametrize("spec", CASES)
def test_the_margin_is_a_multiple_of_the_output_stride_and_at_most_one_above_the_reach(
    spec: NetworkSpec,
) -> None:
    reach, margin = receptive_field(build_network(spec)), margin_px(spec)
    assert reach is not None
    assert margin is not None
    assert margin % spec.output_stride == 0
    assert 0 <= margin - max(reach.before_px, reach.after_px) < spec.output_stride


def test_image_pooling_has_no_margin() -> None:
    assert margin_px(spec_of(image_pooling="window")) is None


def test_a_network_and_its_spec_have_the_same_margin() -> None:
    assert margin_px(build_network(spec_of())) == margin_px(spec_of()) == 320


@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
def test_a_window_gives_the_scenes_logits_where_its_edges_are_out_of_reach(padding: str) -> None:
    torch.manual_seed(5)
    spec = spec_of(padding=padding, **LIVELY)
    network, margin = build_network(spec).eval(), margin_px(spec)
    assert margin is not None
    _excite(network)
    scene = torch.randn(1, 2, 21, 2 * margin + 235)
    first = 5 * spec.output_stride
    with torch.inference_mode():
        whole = network(scene)
        window = network(scene[..., first : first + 2 * margin + 80])
    inside = slice(margin, margin + 80)
    assert float(whole[..., first + margin : first + margin + 80].std()) > 0.1
    torch.testing.assert_close(window[..., inside], whole[..., first + margin : first + margin + 80], rtol=0, atol=1e-4)
    outside = (window[..., :margin] - whole[..., first : first + margin]).abs().max()
    assert float(outside) > 1e-2, "near its edge the window must differ, or this test could not fail"


def test_a_window_off_the_grid_of_the_output_stride_differs() -> None:
    torch.manual_seed(5)
    spec = spec_of(**LIVELY)
    network, margin = build_network(spec).eval(), margin_px(spec)
    assert margin is not None
    _excite(network)
    scene = torch.randn(1, 2, 21, 2 * margin + 235)
    with torch.inference_mode():
        whole, window = network(scene), network(scene[..., 5 : 5 + 2 * margin + 80])
    off = (window[..., margin : margin + 80] - whole[..., 5 + margin : 5 + margin + 80]).abs().max()
    assert float(off) > 1e-3


def _excite(network: DeepLab) -> None:
    """Spread the logits over several units: fresh layers would shrink them to nothing."""
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(2, network.spec.n_bands, 32, 64))
    network.eval()
    network.classifier.weight.data.mul_(3)


TINY_BACKBONE = """
from torch import nn

from pipeline.network.convolution import ConvNormActivation, convolution
from pipeline.network.features import Backbone, BackboneModule, Features


class Tiny(BackboneModule):
    low_level_channels = high_level_channels = 8

    def __init__(self, spec):
        super().__init__()
        self.first = ConvNormActivation(convolution(spec.n_bands, 8, kernel=5, stride=2))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.last = nn.Sequential(*(ConvNormActivation(convolution(8, 8, kernel=3, stride=2)) for _ in range(2)))

    def forward(self, x):
        low_level = self.pool(self.first(x))
        return Features(low_level=low_level, high_level=self.last(low_level))


BACKBONES = {"tiny": Backbone(build=Tiny)}
"""


@pytest.fixture
def tiny_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A backbone in a new file, as if it lay beside the others."""
    (tmp_path / "tiny_backbone.py").write_text(TINY_BACKBONE)
    monkeypatch.setattr(backbones, "__path__", [*backbones.__path__, str(tmp_path)])
    backbones.known_backbones.cache_clear()
    yield "tiny"
    monkeypatch.undo()
    backbones.known_backbones.cache_clear()
    sys.modules.pop(f"{backbones.__name__}.tiny_backbone", None)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_new_backbone_is_one_new_file_and_keeps_the_contract(tiny_backbone: str, rule: Any, tmp_path: Path) -> None:
    rule(calibrated(spec_of(backbone=tiny_backbone, n_bands=4)), tmp_path)


@pytest.mark.parametrize("architecture", ["deeplabv3", "deeplabv3plus"])
def test_a_new_backbone_has_a_margin_without_further_code(tiny_backbone: str, architecture: str) -> None:
    spec = spec_of(backbone=tiny_backbone, architecture=architecture)
    reach = receptive_field(spec)
    assert reach is not None
    assert measured_reach(linear(build_network(spec)), half_px=margin_px(spec) + 40) == (reach.before_px, reach.after_px)
