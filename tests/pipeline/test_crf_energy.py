"""What a CRF spec accepts, and how far a tile of it reads."""

import math

import pytest

from pipeline.crf.energy import HALO_SIGMAS, CrfSpec
from pipeline.errors import SpecError


@pytest.mark.parametrize("name", ["theta_alpha", "theta_beta", "theta_gamma"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_kernel_has_a_finite_width_above_0(name, value):
    with pytest.raises(SpecError, match=f"{name} = {value}.*above 0"):
        CrfSpec(**{name: value})


@pytest.mark.parametrize("name", ["w_appearance", "w_smoothness"])
@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf])
def test_a_weight_is_finite_and_not_negative(name, value):
    with pytest.raises(SpecError, match=f"{name} = {value}.*0 or more"):
        CrfSpec(**{name: value})
    assert getattr(CrfSpec(**{name: 0.0}), name) == 0


@pytest.mark.parametrize("name", ["n_steps", "tile_px"])
def test_counts_start_at_1(name):
    with pytest.raises(SpecError, match=f"{name} = 0.*1 or more"):
        CrfSpec(**{name: 0})
    assert getattr(CrfSpec(**{name: 1}), name) == 1


@pytest.mark.parametrize(("alpha", "gamma", "halo"), [(67.0, 1.0, 134), (1.0, 30.0, 60), (2.3, 1.0, 5), (0.1, 0.1, 1)])
def test_the_halo_is_two_sigmas_of_the_wider_spatial_kernel_rounded_up(alpha, gamma, halo):
    spec = CrfSpec(theta_alpha=alpha, theta_gamma=gamma)
    assert spec.halo_px == halo >= HALO_SIGMAS * max(alpha, gamma)
