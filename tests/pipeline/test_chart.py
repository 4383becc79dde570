"""Charts: axes that enclose the numbers, and ink where the numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chart import ORANGE, Panel, Series, _number, _ticks, draw_chart
from pipeline.errors import SpecError


@given(st.lists(st.floats(-1e4, 1e4).map(lambda value: round(value, 4)), min_size=1, max_size=5))
def test_ticks_enclose_all_values_evenly(values):
    ticks = _ticks(values)
    assert ticks[0] <= min(values) + 1e-6
    assert ticks[-1] >= max(values) - 1e-6
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([30, 100], ["20", "40", "60", "80", "100"]),
        ([0.61, 0.66], ["0.61", "0.62", "0.63", "0.64", "0.65", "0.66"]),
        ([5], ["4", "5", "6"]),
    ],
)
def test_ticks_are_round_numbers(values, labels):
    ticks = _ticks(values)
    assert [_number(tick, ticks) for tick in ticks] == labels


def test_panels_stand_side_by_side_and_a_higher_value_is_drawn_higher():
    def panel(*heights):
        points = tuple(enumerate(heights))
        return Panel(title="t", x_label="x", series=(Series(points=points, colour=ORANGE, line=False),))

    one, two = draw_chart([panel(0, 1)]), draw_chart([panel(0, 1), panel(1, 0)])
    assert two.size == (2 * one.width, one.height)
    rows, cols = np.nonzero((np.asarray(one) == ORANGE).all(axis=2))
    assert rows[cols < one.width / 2].mean() > rows[cols > one.width / 2].mean()


def test_a_panel_without_points_is_refused():
    with pytest.raises(SpecError, match="has no points"):
        Panel(title="empty", x_label="x", series=(Series(points=()),))
