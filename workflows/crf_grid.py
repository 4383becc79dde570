"""Which CRFs does a search try? Every combination of some values of w1, theta_alpha and theta_beta, and then finer ones around the best.

The papers fix w2 = 3 and theta_gamma = 3 and search the other three: v1 w1 in 5 to 10, theta_alpha in 50 to 100, theta_beta in 3 to 10,
coarse to fine; v2 w1 in 3 to 6, theta_alpha in 30 to 100, theta_beta in 3 to 6. Their photos show few large objects; the default grid also
has weaker CRFs, for the small objects of aerial images.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import SpecError

if TYPE_CHECKING:
    from pipeline.crf.energy import CrfSpec

AXES = ("w_appearance", "theta_alpha", "theta_beta")
"""The fields of `CrfSpec` that a search varies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrfGrid:
    """The values that are combined; each axis is sorted at construction."""

    w_appearance: tuple[float, ...] = (1.0, 3.0, 6.0)
    """Weights of the appearance kernel (w1), 0 or more."""
    theta_alpha: tuple[float, ...] = (10.0, 30.0, 80.0)
    """Its reaches in space, px, above 0."""
    theta_beta: tuple[float, ...] = (3.0, 5.0, 10.0)
    """Its reaches in guide units of 0 to 255, above 0."""

    def __post_init__(self) -> None:
        for axis in AXES:
            values = getattr(self, axis)
            if not values:
                raise SpecError(f"no value of {axis} was given to search; give one or more")
            if not all(math.isfinite(value) for value in values):
                raise SpecError(f"{axis} was to be searched over {', '.join(map(str, values))}; give finite numbers")
            object.__setattr__(self, axis, tuple(sorted({float(value) for value in values})))

    def specs(self, base: CrfSpec) -> list[CrfSpec]:
        """Return ``base`` with every combination of the values; SpecError where one of them is out of range."""
        combinations = itertools.product(*(getattr(self, axis) for axis in AXES))
        return [dataclasses.replace(base, **dict(zip(AXES, values, strict=True))) for values in combinations]

    def around(self, best: CrfSpec) -> CrfGrid:
        """Return the finer grid around a point of this one: each axis gives the best value and those half way to its neighbours.

        Where the best value is the last of its axis, the finer axis goes half a step beyond it, if that is still above 0.

        Examples
        --------
        >>> CrfGrid(theta_alpha=(30, 60, 100)).around(CrfSpec(w_appearance=3, theta_alpha=100, theta_beta=3)).theta_alpha
        (80.0, 100.0, 120.0)
        """
        return CrfGrid(**{axis: _finer(getattr(self, axis), getattr(best, axis)) for axis in AXES})


def _finer(values: tuple[float, ...], best: float) -> tuple[float, ...]:
    if len(values) == 1:
        return values
    index = values.index(best)
    below = (best - values[index - 1]) / 2 if index > 0 else (values[index + 1] - best) / 2
    above = (values[index + 1] - best) / 2 if index + 1 < len(values) else below
    return tuple(value for value in (best - below, best, best + above) if value > 0 or value == best)
