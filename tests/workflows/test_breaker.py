"""A run stops where most blocks fail, and not for a damaged corner."""

import pytest

from workflows.breaker import Breaker
from workflows.events import BlockFailure, BlockReceipt

GOOD = BlockReceipt(block=(0, 0), state="nodata", n_pixels=1, seconds=0.0, device="", host="")
BAD = BlockFailure(block=(0, 0), error="the scene is damaged", attempts=3)


@pytest.mark.parametrize(
    ("outcomes", "is_open"),
    [
        pytest.param([], False, id="nothing"),
        pytest.param([BAD] * 19, False, id="too few to tell"),
        pytest.param([BAD] * 20, True, id="all"),
        pytest.param([GOOD] * 100 + [BAD] * 15, False, id="a corner"),
        pytest.param([GOOD] * 100 + [BAD] * 16, True, id="most of the last"),
        pytest.param([BAD] * 15 + [GOOD] * 20, False, id="only at first"),
        pytest.param([GOOD, BAD] * 50, False, id="every other one"),
    ],
)
def test_when_it_opens(outcomes, is_open):
    breaker = Breaker()
    for outcome in outcomes:
        breaker.note(outcome)
    assert breaker.is_open is is_open


def test_it_says_why():
    breaker = Breaker()
    for outcome in [GOOD] * 2 + [BAD] * 18:
        breaker.note(outcome)
    assert "18 of the last 20 blocks failed" in breaker.reason
    assert "the scene is damaged" in breaker.reason
