import dataclasses

import pytest
import torch
from factories import lively_network, tiny_model_spec
from torch.nn import functional

from pipeline.errors import SpecError
from pipeline.network.counting import flop_per_pixel
from pipeline.network.footprint import peak_activation_bytes
from pipeline.network.image_pooling import assemble, without_image_pooling
from pipeline.network.multiscale import MultiScale
from pipeline.network.scales import check_scales, scaled_px
from pipeline.network.spec import MultiScaleSpec, with_image_pooling

SPEC = tiny_model_spec(n_classes=4, image_pooling="window").network


@pytest.fixture(scope="module")
def network():
    return lively_network(SPEC, seed=3)


@pytest.fixture(scope="module")
def window():
    torch.manual_seed(0)
    return functional.interpolate(torch.randn(2, 3, 24, 32), size=(96, 128), mode="bicubic")


def resized(x, size):
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def test_one_scale_is_the_network_itself(network, window):
    with torch.inference_mode():
        assert torch.equal(MultiScale(network, MultiScaleSpec())(window), network(window))


def test_max_takes_the_largest_score_of_all_scales(network, window):
    """DeepLab v2, section 3.2: bilinear interpolation to the window's resolution, then the maximum at each position."""
    spec = MultiScaleSpec(scales=(0.5, 0.75, 1.0), fusion="max")
    with torch.inference_mode():
        sizes = ((48, 64), (64, 96))  # 72 is as near to 64 as to 80, and an even count of cells wins
        scores = torch.stack([*(resized(network(resized(window, size)), (96, 128)) for size in sizes), network(window)])
        torch.testing.assert_close(MultiScale(network, spec)(window), scores.amax(dim=0), rtol=0, atol=1e-4)


def test_mean_averages_the_probabilities_of_scales_and_mirror_images(network, window):
    """DeepLab v3, section 4."""
    spec = MultiScaleSpec(scales=(0.5, 1.0), flip=True)
    with torch.inference_mode():
        small = resized(window, (48, 64))
        logits = [
            resized(network(small), (96, 128)),
            resized(network(small.flip(-1)), (96, 128)).flip(-1),
            network(window),
            network(window.flip(-1)).flip(-1),
        ]
        expected = torch.stack([torch.softmax(one, dim=1) for one in logits]).mean(dim=0)
        found = torch.softmax(MultiScale(network, spec)(window), dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_mirrored_window_gives_the_mirrored_answer(network, window):
    system = MultiScale(network, MultiScaleSpec(flip=True))
    with torch.inference_mode():
        torch.testing.assert_close(system(window.flip(-1)), system(window).flip(-1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("side", "scale", "expected"),
    [(1024, 0.75, 768), (1024, 1.75, 1792), (528, 0.75, 400), (64, 0.1, 16), (1024, 1.0, 1024), (513, 0.5, 257)],
)
def test_a_scaled_window_is_the_nearest_multiple_of_the_output_stride(side, scale, expected):
    assert scaled_px(side, scale, 16) == expected


def test_the_cost_is_that_of_all_scales_and_mirror_images():
    spec = MultiScaleSpec(scales=(0.5, 1.0, 1.5), flip=True)
    assert spec.relative_cost == 2 * (0.25 + 1 + 2.25)
    assert flop_per_pixel(SPEC, spec) / flop_per_pixel(SPEC) == pytest.approx(spec.relative_cost, rel=1e-3)


def test_larger_scales_need_more_memory():
    plain, larger = (
        peak_activation_bytes(SPEC, window_px=128, multiscale=MultiScaleSpec(scales=s)) for s in ((1.0,), (1.0, 2.0))
    )
    assert 3 < larger / plain < 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scales": ()}, "no scales"),
        ({"scales": (0.0, 1.0)}, "a scale of 0.0"),
        ({"scales": (float("nan"),)}, "a scale of nan"),
        ({"scales": (9.0,)}, "up to 8"),
        ({"scales": (1.0, 1.0)}, "name one twice"),
        ({"fusion": "sum"}, "max, mean"),
    ],
)
def test_scales_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(SpecError, match=words):
        MultiScaleSpec(**settings)


@pytest.mark.parametrize(
    ("scales", "window", "step", "exact", "words"),
    [
        ((0.01,), 1024, 768, False, "smaller than the network's output stride of 16 px; use a scale of at least 0.0156"),
        ((0.75, 1.0), 1040, 528, True, "make --window and --overlap multiples of 64"),
        ((0.75, 1.0), 1024, 520, True, "multiples of 64"),
        ((1 / 3,), 1024, 768, True, "multiples of 48"),
    ],
)
def test_scales_that_do_not_fit_the_grid_are_refused(scales, window, step, exact, words):
    with pytest.raises(SpecError, match=words):
        check_scales(MultiScaleSpec(scales=scales), window_px=window, step_px=step, output_stride=16, exact=exact)


def test_other_grids_are_free_without_exact_blending():
    check_scales(MultiScaleSpec(scales=(0.3, 0.77, 1.0)), window_px=1040, step_px=528, output_stride=16, exact=False)


def test_a_spec_survives_its_round_trip():
    spec = MultiScaleSpec(scales=(0.5, 1.0), flip=True, fusion="max")
    assert MultiScaleSpec.from_dict(spec.to_dict()) == spec
    assert MultiScaleSpec.from_dict({}) == MultiScaleSpec()


# --- the image-level branch


def test_off_is_the_branch_giving_zeros(network, window):
    off = without_image_pooling(network)
    silenced = lively_network(SPEC, seed=3)
    branch = silenced.aspp.branches[-1].project
    torch.nn.init.zeros_(branch.norm.weight)
    torch.nn.init.zeros_(branch.norm.bias)
    with torch.inference_mode():
        torch.testing.assert_close(off(window), silenced(window), rtol=0, atol=1e-4)
        assert float((network(window) - off(window)).abs().max()) > 0.01
    assert off.spec == dataclasses.replace(SPEC, image_pooling="off")
    assert network.spec.image_pooling == "window"


def test_global_with_the_mean_of_the_window_is_window(network, window):
    one = window[:1]
    with torch.inference_mode():
        mean = network.features(one).high_level.mean(dim=(0, 2, 3))
        system = assemble(network, MultiScaleSpec(), mode="global", scene_means=(tuple(mean.tolist()),))
        torch.testing.assert_close(system(one), network(one), rtol=0, atol=1e-4)


def test_means_of_another_shape_are_refused(network):
    with pytest.raises(SpecError, match=r"needs \(2, 320\)"):
        assemble(network, MultiScaleSpec(flip=True), mode="global", scene_means=((0.0,) * 320,))


def test_a_branch_that_is_not_there_cannot_be_asked_for():
    off = dataclasses.replace(SPEC, image_pooling="off")
    assert with_image_pooling(off, "off") == off
    assert with_image_pooling(SPEC, None) == SPEC
    for mode in ("global", "window"):
        with pytest.raises(SpecError, match="has no image-level branch"):
            with_image_pooling(off, mode)
