"""How far can a measured IoU be trusted? Draw the blocks of ground again and again, and see how it varies.

::

    blocks that were counted    1 2 3 4 5 6      IoU 0.61
    drawn, with replacement     4 1 1 6 3 4      IoU 0.58     a thousand times; the middle 95 % are the interval
                                2 5 5 5 1 3      IoU 0.64

Pixels of one house are right or wrong together, so pixels are not drawn one by one: the interval would be far too short. It tells what
other ground *of the same scenes* would give, and nothing about other scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workflows.confusion import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

N_DRAWS = 1000
"""How often the blocks are drawn."""
COVERAGE = 0.95
"""Share of the draws within an interval."""
FEWEST_BLOCKS = 8
"""With fewer blocks there is no interval: draws of so few say little."""
_DRAWS_AT_ONCE = 50
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Between which values a figure lies in 95 % of the draws."""

    low: float
    """The 2.5th percentile."""
    high: float
    """The 97.5th."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """The intervals of one table."""

    iou: tuple[Interval | None, ...]
    """By class; None where the class is in no block, or where there are too few blocks."""
    mean_iou: Interval | None
    """Of the mean over the classes."""
    n_blocks: int
    """Blocks that have counted pixels."""


def find_intervals(blocks: Tally) -> Intervals:
    """Return the intervals of the figures over ``blocks``, (blocks, classes); the same for the same blocks, always."""
    n_blocks, n_classes = blocks.hits.shape
    if n_blocks < FEWEST_BLOCKS:
        return Intervals(iou=(None,) * n_classes, mean_iou=None, n_blocks=n_blocks)
    drawn = _draw(blocks)
    return Intervals(
        iou=tuple(_interval(values) for values in drawn.iou.T),
        mean_iou=_interval(drawn.mean_iou),
        n_blocks=n_blocks,
    )


def join_blocks(parts: Sequence[Tally]) -> Tally:
    """Return the blocks of several scenes as one list."""
    return Tally(
        hits=np.concatenate([part.hits for part in parts]),
        labelled=np.concatenate([part.labelled for part in parts]),
        predicted=np.concatenate([part.predicted for part in parts]),
    )


def _draw(blocks: Tally) -> Tally:
    """Return the sums over the blocks of each draw, (draws, classes)."""
    n_blocks = len(blocks.hits)
    generator = np.random.default_rng(_SEED)
    table = np.stack([blocks.hits, blocks.labelled, blocks.predicted], axis=1).reshape(n_blocks, -1).astype(np.float64)
    sums = []
    for _ in range(0, N_DRAWS, _DRAWS_AT_ONCE):
        chosen = generator.integers(n_blocks, size=(_DRAWS_AT_ONCE, n_blocks))
        times = np.stack([np.bincount(one, minlength=n_blocks) for one in chosen])
        sums.append(times.astype(np.float64) @ table)
    drawn = np.concatenate(sums).reshape(N_DRAWS, 3, -1)
    return Tally(hits=drawn[:, 0], labelled=drawn[:, 1], predicted=drawn[:, 2])


def _interval(values: NDArray[Any]) -> Interval | None:
    """Return the interval of the draws in which the figure exists."""
    existing = values[~np.isnan(values)]
    if not existing.size:
        return None
    low, high = np.quantile(existing, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(low=float(low), high=float(high))
