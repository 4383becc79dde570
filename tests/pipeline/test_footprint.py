"""Activation memory counted on meta tensors, against sums by hand and against what torch really allocates."""

import pytest
import torch
from factories import tiny_model_spec
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pipeline.network import counting, footprint, receptive_field
from pipeline.network.counting import PeakBytes, peak_bytes
from pipeline.network.deeplab import build_network
from pipeline.network.footprint import largest_kernel_bytes, parameter_bytes, peak_activation_bytes
from pipeline.network.receptive_field import margin_px as receptive_margin
from pipeline.network.spec import MultiScaleSpec

SPEC = tiny_model_spec(n_classes=3).network


def peak_of(run):
    with torch.device("meta"), torch.no_grad(), PeakBytes() as counter:
        run()
    return counter.peak_bytes


def test_only_what_is_alive_together_counts():
    def run():
        one = torch.empty(100)  # 400 bytes
        two = one + 1  # 800 alive
        del one
        three = torch.cat([two, two])  # 400 + 800 alive
        del two, three
        torch.empty(250)  # 1000 alive

    assert peak_of(run) == 1200


def test_views_share_their_storage():
    def run():
        one = torch.empty(10, 10)
        views = [one.view(100), one[:5], one.t(), one.expand(3, 10, 10)]
        assert len(views) == 4

    assert peak_of(run) == 400


def test_a_view_keeps_its_storage_alive():
    def run():
        view = torch.empty(100)[:1]
        torch.empty(50)
        del view
        torch.empty(75)

    assert peak_of(run) == 600


def test_a_chain_of_convolutions_holds_two_neighbours_at_a_time():
    chain = nn.Sequential(*(nn.Conv2d(n_in, n_out, 3, padding=1, device="meta") for n_in, n_out in [(1, 4), (4, 8), (8, 2)]))
    window = torch.empty(1, 1, 16, 20, device="meta")
    assert peak_of(lambda: chain(window)) == (4 + 8) * 16 * 20 * 4


@pytest.mark.parametrize("image_pooling", ["off", "window"])
def test_the_count_is_near_what_torch_allocates(image_pooling):
    spec, side = tiny_model_spec(image_pooling=image_pooling).network, 96
    network, window = build_network(spec).eval(), torch.zeros(1, 3, side, side)
    with torch.inference_mode():
        network(window)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            network(window)
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    counted = peak_activation_bytes(spec, window_px=side) - window.nbytes
    assert counted == pytest.approx(peak, rel=0.3), "the convolution library's own copies are not counted"


def test_the_peak_grows_with_the_area_of_the_window():
    small, large = (peak_activation_bytes(SPEC, window_px=side) for side in (64, 256))
    assert large == pytest.approx(16 * small, rel=0.02)


def test_nothing_is_allocated_however_large_the_window():
    assert peak_activation_bytes(SPEC, window_px=32_768) > 2**35


@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.0, 1.25)])
def test_large_windows_are_proportional_to_a_small_one(scales):
    multiscale = MultiScaleSpec(scales=scales)
    assert peak_activation_bytes(SPEC, window_px=1536, multiscale=multiscale) == pytest.approx(
        peak_bytes(SPEC, 1536, multiscale), rel=1e-3
    )


def asked():
    """Return all that is kept, of one network."""
    costs = peak_activation_bytes(SPEC, window_px=64), parameter_bytes(SPEC), largest_kernel_bytes(SPEC)
    seen = [footprint.margin_px(spec, MultiScaleSpec()) for spec in (SPEC, tiny_model_spec(image_pooling="window").network)]
    assert seen == [receptive_margin(SPEC), None]
    return costs, seen


def test_what_is_counted_is_kept_for_the_next_process(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    footprint._peak.cache_clear()
    footprint._parameters.cache_clear()
    footprint.margin_px.cache_clear()
    counted = asked()
    footprint._peak.cache_clear()
    footprint._parameters.cache_clear()
    footprint.margin_px.cache_clear()
    monkeypatch.setattr(receptive_field, "margin_px", None)
    monkeypatch.setattr(counting, "peak_bytes", None)
    monkeypatch.setattr(counting, "parameter_sizes", None)
    assert asked() == counted


def test_output_stride_8_takes_more():
    finer = tiny_model_spec(n_classes=3, output_stride=8, aspp_channels=512).network
    coarser = tiny_model_spec(n_classes=3, output_stride=16, aspp_channels=512).network
    assert peak_activation_bytes(finer, window_px=256) > peak_activation_bytes(coarser, window_px=256)


def test_parameters_are_counted_in_float32():
    network = build_network(SPEC)
    assert parameter_bytes(SPEC) == 4 * sum(parameter.numel() for parameter in network.parameters())
