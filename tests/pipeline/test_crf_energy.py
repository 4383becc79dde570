"""What a CRF spec accepts, how it travels, and how far a tile of it reads."""

import dataclasses
import json
import math

import pytest

from pipeline.crf.energy import CrfSpec
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


@pytest.mark.parametrize(
    ("alpha", "gamma", "n_steps", "halo"),
    [
        (67.0, 1.0, 10, 148),
        (1.0, 30.0, 10, 66),
        (2.3, 1.0, 10, 6),
        (0.1, 0.1, 10, 1),
        (100.0, 1.0, 1, 130),
        (100.0, 1.0, 100, 310),
    ],
)
def test_the_halo_grows_with_the_wider_spatial_kernel_and_slowly_with_the_steps(alpha, gamma, n_steps, halo):
    assert CrfSpec(theta_alpha=alpha, theta_gamma=gamma, n_steps=n_steps).halo_px == halo


# --- compatibility, guide bands, backend, thresholds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"compatibility": ((0.0, 1.0),)}, r"1 rows with \[2\] costs", id="not square"),
        pytest.param({"compatibility": ((0.0, 1.0), (1.0,))}, r"2 rows with \[1, 2\] costs", id="ragged"),
        pytest.param({"compatibility": ()}, "0 rows", id="empty"),
        pytest.param(
            {"compatibility": ((0, 1), (2, 0))}, r"classes 0 and 1 is 1.0, of 1 and 0 2.0.*symmetric", id="not symmetric"
        ),
        pytest.param({"compatibility": ((0, math.nan), (math.nan, 0))}, "must be finite", id="NaN"),
        pytest.param({"guide_bands": (0, 1)}, r"guide_bands = 0,1 .*counted from 1", id="band 0"),
        pytest.param({"guide_bands": (2, 2)}, r"guide_bands = 2,2 .*each once", id="band twice"),
        pytest.param({"guide_bands": (1.5,)}, r"guide_bands = 1.5 ", id="half a band"),
        pytest.param({"backend": "gpu"}, r"backend 'gpu'.*cpu, torch, pydensecrf", id="backend"),
        pytest.param(
            {"backend": "pydensecrf", "stop_below": 0.01}, r"stop_below = 0.01 .*give 0, or take", id="pydensecrf stops"
        ),
        pytest.param({"stop_below": -0.1}, r"stop_below = -0.1 .*give 0 .*to less than 1", id="stop below 0"),
        pytest.param({"stop_below": math.nan}, r"stop_below = nan", id="stop NaN"),
        pytest.param({"absent_below": 1.0}, r"absent_below = 1.0 ", id="absent 1"),
        pytest.param({"skip_above": 0.0}, r"skip_above = 0.0 .*more than 0, up to 1", id="skip 0"),
        pytest.param({"skip_above": 1.01}, r"skip_above = 1.01 ", id="skip above 1"),
        pytest.param({"n_steps": 2.5}, r"n_steps = 2.5 .*whole number", id="half a step"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        CrfSpec(**settings)


FULL = CrfSpec(
    theta_alpha=50,
    theta_beta=5,
    theta_gamma=2,
    w_appearance=7,
    w_smoothness=1,
    compatibility=((0, 1, 2), (1, 0, 0.5), (2, 0.5, -1)),
    n_steps=4,
    guide_bands=(3, 1),
    tile_px=512,
    backend="torch",
    stop_below=0.01,
    absent_below=0.02,
    skip_above=0.99,
)


def test_every_field_of_the_full_spec_differs_from_its_default():
    assert all(getattr(FULL, field.name) != getattr(CrfSpec(), field.name) for field in dataclasses.fields(CrfSpec))


@pytest.mark.parametrize("spec", [FULL, CrfSpec(), CrfSpec(guide_bands=())], ids=["full", "default", "no band"])
def test_a_spec_survives_json_and_back(spec):
    back = CrfSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert back == spec
    assert hash(back) == hash(spec)


def test_whole_numbers_and_fractions_are_one_energy():
    assert CrfSpec(compatibility=((0, 1), (1, 0)), theta_alpha=67) == CrfSpec(compatibility=((0.0, 1.0), (1.0, 0.0)))


def test_a_description_from_before_there_were_backends_is_pydensecrfs():
    names = ("theta_alpha", "theta_beta", "theta_gamma", "w_appearance", "w_smoothness", "n_steps", "tile_px")
    old = {name: getattr(CrfSpec(), name) for name in names}
    assert CrfSpec.from_dict(old) == CrfSpec(backend="pydensecrf")


def test_an_unknown_key_is_refused_with_a_near_one():
    with pytest.raises(SpecError, match="unknown key 'theta_alfa'; did you mean 'theta_alpha'"):
        CrfSpec.from_dict({"theta_alfa": 3})


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"n_classes": 4, "n_bands": 3}, "compatibility of 3 classes was given; the model has 4: give 4 rows of 4 costs"),
        ({"n_classes": 3, "n_bands": 2}, r"guide_bands = 3,1 .*the model has 2 band\(s\): give numbers from 1 to 2"),
    ],
    ids=["classes", "bands"],
)
def test_what_does_not_fit_the_model_is_refused(counts, message):
    FULL.check_fits(n_classes=3, n_bands=3)
    CrfSpec(guide_bands=()).check_fits(**counts)
    with pytest.raises(SpecError, match=message):
        FULL.check_fits(**counts)
