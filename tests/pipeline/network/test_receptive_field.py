import pytest
import torch
from torch import nn

from pipeline.network.convolution import ConvNormActivation
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.receptive_field import margin_px, receptive_field
from pipeline.network.spec import NetworkSpec


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


def linear(network: DeepLab) -> DeepLab:
    """Make every path count: positive kernels, no activation, so that nothing cancels or is cut off."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0 / module.weight[0].numel())
        if isinstance(module, ConvNormActivation):
            module.activation = nn.Identity()
    return network.double().eval()


def measured_reach(network: DeepLab, *, half_px: int, axis: int) -> tuple[int, int]:
    """Return how far before and after it the furthest influences of any output pixel lie, along one axis."""
    stride = network.spec.output_stride
    centre = -(-half_px // stride) * stride
    shape = [1, network.spec.n_bands, stride, stride]
    shape[axis] = 2 * centre + stride
    scene = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    line = network(scene)[0, 0].select(3 - axis, 0)
    before = after = 0
    for pixel in range(centre, centre + stride):
        (gradient,) = torch.autograd.grad(line[pixel], scene, retain_graph=True)
        others = [dim for dim in range(4) if dim != axis]
        touched = torch.nonzero(gradient.abs().sum(dim=others)).flatten()
        before, after = max(before, pixel - int(touched[0])), max(after, int(touched[-1]) - pixel)
    return before, after


LIVELY = {"atrous_rates": (1,), "n_bands": 2, "aspp_channels": 16, "decoder_channels": 16}

CASES = [
    pytest.param(spec_of(), id="output stride 16"),
    pytest.param(spec_of(padding="tf_same"), id="TF SAME"),
    pytest.param(spec_of(output_stride=8, atrous_rates=(1,)), id="output stride 8"),
    pytest.param(spec_of(separable=False), id="plain convolutions"),
    pytest.param(spec_of(atrous_rates=(6, 12, 18)), id="the paper's rates"),
]


@pytest.mark.parametrize("spec", CASES)
def test_the_computed_reach_is_the_measured_one(spec: NetworkSpec) -> None:
    network = linear(build_network(spec))
    reach = receptive_field(network)
    assert reach is not None
    found = measured_reach(network, half_px=max(reach.before_px, reach.after_px) + 40, axis=3)
    assert found == (reach.before_px, reach.after_px)


def test_rows_and_columns_have_the_same_reach() -> None:
    network = linear(build_network(spec_of()))
    assert measured_reach(network, half_px=400, axis=2) == measured_reach(network, half_px=400, axis=3)


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
