import pytest
import torch
from torch.nn import functional

from pipeline.network.backbones.inverted_residual import plan_blocks
from pipeline.network.backbones.mobilenet_v2 import STAGES, MobileNetV2
from pipeline.network.convolution import TFSameConv2d
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.fold import fold_batch_norm
from pipeline.network.spec import NetworkSpec


def small(**changes: object) -> NetworkSpec:
    defaults = {
        "n_classes": 3,
        "atrous_rates": (1, 2),
        "aspp_channels": 16,
        "low_level_channels": 8,
        "decoder_channels": 16,
    }
    return NetworkSpec(**{**defaults, **changes})


def backbone_spec(output_stride: int, **changes: object) -> NetworkSpec:
    return NetworkSpec(n_classes=2, output_stride=output_stride, **changes)


def seeded(spec: NetworkSpec) -> DeepLab:
    """A network whose normalisations do something."""
    torch.manual_seed(3)
    network = build_network(spec).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.3, 0.9)
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.normal_(0, 0.1)
    return network


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
@pytest.mark.parametrize("shape", [(32, 48), (33, 65), (1, 7), (50, 31)])
def test_logits_have_the_size_of_the_input(output_stride: int, padding: str, shape: tuple[int, int]) -> None:
    network = build_network(small(output_stride=output_stride, padding=padding, n_bands=5)).eval()
    with torch.inference_mode():
        logits = network(torch.randn(2, 5, *shape))
    assert logits.shape == (2, 3, *shape)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("output_stride", "strides", "rates"),
    [
        (32, [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1], [1] * 17),
        (16, [1, 2, 1, 2, 1, 1, 2] + [1] * 10, [1] * 14 + [2] * 3),
        (8, [1, 2, 1, 2] + [1] * 13, [1] * 7 + [2] * 7 + [4] * 3),
    ],
)
def test_strides_beyond_the_output_stride_become_rates(output_stride: int, strides: list[int], rates: list[int]) -> None:
    plans = plan_blocks(STAGES, output_stride)
    assert [plan.stride for plan in plans] == strides
    assert [plan.rate for plan in plans] == rates


@pytest.mark.parametrize(("output_stride", "base"), [(16, 2), (8, 4)])
def test_multi_grid_multiplies_the_rates_of_the_last_three_blocks(output_stride: int, base: int) -> None:
    plain, grid = plan_blocks(STAGES, output_stride), plan_blocks(STAGES, output_stride, multi_grid=(1, 2, 4))
    assert [plan.rate for plan in grid[-3:]] == [base, 2 * base, 4 * base]
    assert grid[:-3] == plain[:-3]
    backbone = MobileNetV2(backbone_spec(output_stride, multi_grid=(1, 2, 4)))
    assert [block.depthwise.conv.dilation[0] for block in backbone.blocks[-3:]] == [base, 2 * base, 4 * base]


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_msc_gets_the_image_and_the_features_before_each_stride(output_stride: int) -> None:
    spec = small(architecture="deeplabv1", image_pooling="off", side_channels=16, head_channels=8, output_stride=output_stride)
    network, window = seeded(spec), torch.randn(1, 3, 64, 96)
    side = network.features(window).side
    assert torch.equal(side[0], window)
    found = tuple((source.shape[1], 64 // source.shape[2]) for source in side)
    assert found == network.backbone.side_channels == ((3, 1), (16, 2), (24, 4), (32, 8), (96, min(16, output_stride)))
    assert network(window).shape == (1, 3, 64, 96)
    network(window).sum().backward()
    assert all(float(branch.mix.weight.grad.abs().sum()) > 0 for branch in network.head.side)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_backbone_gives_features_at_stride_4_and_at_the_output_stride(output_stride: int) -> None:
    backbone = MobileNetV2(backbone_spec(output_stride)).eval()
    low_level, high_level, _ = backbone(torch.randn(1, 3, 64, 96))
    assert low_level.shape == (1, 24, 16, 24)
    assert high_level.shape == (1, 320, 64 // output_stride, 96 // output_stride)


def test_atrous_features_are_the_strided_ones_between_new_ones() -> None:
    """What atrous convolution is for: the same weights on a finer grid (DeepLab v3, section 3.1)."""
    torch.manual_seed(0)
    dense = MobileNetV2(backbone_spec(8, padding="symmetric")).eval()
    coarse = MobileNetV2(backbone_spec(32, padding="symmetric")).eval()
    coarse.load_state_dict(dense.state_dict())
    window = torch.randn(1, 3, 256, 256)
    with torch.inference_mode():
        fine, sparse = dense(window)[1], coarse(window)[1]
    torch.testing.assert_close(fine[..., ::4, ::4], sparse, rtol=1e-3, atol=1e-5 * float(sparse.abs().max()))


@pytest.mark.parametrize(("size", "expected"), [(8, (0, 1)), (9, (1, 1)), (2, (0, 1)), (1, (1, 1))])
def test_tf_same_pads_even_sizes_at_the_end_only(size: int, expected: tuple[int, int]) -> None:
    conv = TFSameConv2d(1, 1, 3, stride=2, bias=False)
    line = torch.randn(1, 1, size, 1)
    padded = functional.pad(line, (1, 1, *expected))
    torch.testing.assert_close(conv(line), functional.conv2d(padded, conv.weight, stride=2))


def test_the_two_paddings_differ_by_a_translation() -> None:
    """Weights made for one work with the other: at stride 4 the centres lie 1 + 2 pixels apart."""
    torch.manual_seed(0)
    symmetric = MobileNetV2(backbone_spec(16, padding="symmetric")).double().eval()
    same = MobileNetV2(backbone_spec(16, padding="tf_same")).double().eval()
    same.load_state_dict(symmetric.state_dict())
    scene = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        still, moved = symmetric(scene)[0], same(scene.roll((3, 3), (-2, -1)))[0]
        unmoved = same(scene)[0]
    interior = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(still[interior], moved[interior])
    assert not torch.allclose(still[interior], unmoved[interior])


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("image_pooling", ["window", "off"])
@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
def test_folding_normalisation_keeps_the_logits(separable: bool, image_pooling: str, padding: str) -> None:
    network = seeded(small(separable=separable, image_pooling=image_pooling, padding=padding))
    folded = fold_batch_norm(network)
    window = torch.randn(2, 3, 47, 64)
    with torch.inference_mode():
        expected, given = network(window), folded(window)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_image_pooling_lets_a_far_pixel_in_and_without_it_none_comes() -> None:
    for pooling, reaches in (("window", True), ("off", False)):
        network = seeded(small(image_pooling=pooling)).double()
        window = torch.randn(1, 3, 16, 1024, dtype=torch.float64, requires_grad=True)
        network(window)[0, 0, 0, 0].backward()
        assert (float(window.grad[..., 900:].abs().max()) > 0) is reaches


def test_a_window_alone_gives_what_it_gives_in_a_batch() -> None:
    network = seeded(small())
    windows = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(windows)[1:2], network(windows[1:2]), rtol=0, atol=1e-5)
