"""Activation memory counted on meta tensors, against sums by hand and against what torch really allocates."""

import dataclasses

import pytest
import torch
from factories import tiny_model_spec
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pipeline.network import footprint
from pipeline.network.deeplab import build_network
from pipeline.network.footprint import _count_peak, _kept_peak, _PeakBytes, parameter_bytes, peak_activation_bytes
from pipeline.network.spec import MultiScaleSpec

SPEC = tiny_model_spec(n_classes=3).network


def peak_of(run):
    with torch.device("meta"), torch.no_grad(), _PeakBytes() as counter:
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
        _count_peak(SPEC, 1536, multiscale), rel=1e-3
    )


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty cache of the user, and this process forgets what it has counted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _kept_peak.cache_clear()
    yield tmp_path / "atrous" / "footprints"
    _kept_peak.cache_clear()


def test_the_next_process_need_not_count_again(kept, monkeypatch):
    counted = peak_activation_bytes(SPEC, window_px=64)
    _kept_peak.cache_clear()
    monkeypatch.setattr(footprint, "_count_peak", None)
    assert peak_activation_bytes(SPEC, window_px=64) == counted


def test_another_network_or_other_code_is_counted_anew(kept, monkeypatch):
    peak_activation_bytes(SPEC, window_px=64)
    peak_activation_bytes(dataclasses.replace(SPEC, aspp_channels=8), window_px=64)
    _kept_peak.cache_clear()
    monkeypatch.setattr(footprint, "_code_digest", lambda: "other code")
    peak_activation_bytes(SPEC, window_px=64)
    assert len(list(kept.iterdir())) == 3


def test_a_damaged_count_is_made_again(kept):
    counted = peak_activation_bytes(SPEC, window_px=64)
    (path,) = kept.iterdir()
    path.write_bytes(b"\xff")
    _kept_peak.cache_clear()
    assert peak_activation_bytes(SPEC, window_px=64) == counted
    assert int(path.read_text()) == counted


def test_without_a_cache_of_the_user_it_is_counted_every_time(kept, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing/here")
    assert peak_activation_bytes(SPEC, window_px=64) == _count_peak(SPEC, 64, MultiScaleSpec())


def test_output_stride_8_takes_more():
    finer = tiny_model_spec(n_classes=3, output_stride=8, aspp_channels=512).network
    coarser = tiny_model_spec(n_classes=3, output_stride=16, aspp_channels=512).network
    assert peak_activation_bytes(finer, window_px=256) > peak_activation_bytes(coarser, window_px=256)


def test_parameters_are_counted_in_float32():
    network = build_network(SPEC)
    assert parameter_bytes(SPEC) == 4 * sum(parameter.numel() for parameter in network.parameters())
