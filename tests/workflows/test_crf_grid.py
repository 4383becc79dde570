"""Which CRFs a search tries."""

from __future__ import annotations

import math

import pytest

from pipeline.crf.energy import CrfSpec
from pipeline.errors import SpecError
from workflows.crf_grid import CrfGrid

BASE = CrfSpec(theta_gamma=3, n_steps=7)


def test_every_combination_is_tried_once_on_top_of_the_base():
    specs = CrfGrid(w_appearance=(5, 3, 5), theta_alpha=(30,), theta_beta=(3, 10)).specs(BASE)
    assert [(one.w_appearance, one.theta_alpha, one.theta_beta) for one in specs] == [
        (3, 30, 3),
        (3, 30, 10),
        (5, 30, 3),
        (5, 30, 10),
    ]
    assert {(one.theta_gamma, one.n_steps) for one in specs} == {(3.0, 7)}


@pytest.mark.parametrize(
    ("values", "best", "finer"),
    [
        pytest.param((30, 60, 100), 60, (45, 60, 80), id="half way to both neighbours"),
        pytest.param((30, 60, 100), 30, (15, 30, 45), id="half a step beyond the first"),
        pytest.param((30, 60, 100), 100, (80, 100, 120), id="half a step beyond the last"),
        pytest.param((3, 10), 3, (3, 6.5), id="never to 0 or below"),
        pytest.param((60,), 60, (60,), id="one value stays one"),
    ],
)
def test_the_finer_grid_lies_around_the_best(values, best, finer):
    grid = CrfGrid(w_appearance=(4,), theta_alpha=values, theta_beta=(3,))
    found = grid.around(CrfSpec(w_appearance=4, theta_alpha=best, theta_beta=3))
    assert found == CrfGrid(w_appearance=(4,), theta_alpha=finer, theta_beta=(3,))


def test_a_weight_of_0_can_be_the_best():
    grid = CrfGrid(w_appearance=(0, 2), theta_alpha=(9,), theta_beta=(3,))
    assert grid.around(CrfSpec(w_appearance=0, theta_alpha=9, theta_beta=3)).w_appearance == (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta_alpha": ()}, "no value of theta_alpha"),
        ({"theta_beta": (3, math.nan)}, "theta_beta was to be searched over 3, nan; give finite"),
    ],
)
def test_a_grid_that_makes_no_sense(changes, message):
    with pytest.raises(SpecError, match=message):
        CrfGrid(**changes)


def test_a_value_out_of_range_is_refused_by_the_energy():
    with pytest.raises(SpecError, match=r"theta_alpha = 0\.0"):
        CrfGrid(theta_alpha=(0, 30)).specs(BASE)
