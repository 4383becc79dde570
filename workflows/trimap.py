"""How right are labels near the boundaries between classes? The trimap measure of DeepLab v1 (figure 7) and v2.

::

    true labels    a a a a a a b b b b b b
    distance, px   6 5 4 3 2 1 1 2 3 4 5 6      1: an upright neighbour is of another class; from there, king's moves

A band of N px holds the labelled pixels whose distance is at most N, so it is 2 N px wide. What has no label makes no boundary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline.labels import NODATA_LABEL as IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.window import Window

WIDEST_PX = 32
"""Bands are counted up to this width, px."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimapCounts:
    """Labelled pixels by their distance from a boundary."""

    n_pixels: tuple[int, ...]
    """Pixels at 1, 2, ... px."""
    n_right: tuple[int, ...]
    """Those of them whose predicted label is the true one."""

    @classmethod
    def none(cls) -> Self:
        """Return the counts of no pixels."""
        return cls(n_pixels=(0,) * WIDEST_PX, n_right=(0,) * WIDEST_PX)

    def __add__(self, other: TrimapCounts) -> TrimapCounts:
        """Return the counts over the pixels of both."""
        return TrimapCounts(
            n_pixels=tuple(a + b for a, b in zip(self.n_pixels, other.n_pixels, strict=True)),
            n_right=tuple(a + b for a, b in zip(self.n_right, other.n_right, strict=True)),
        )

    def accuracy(self, width_px: int) -> float | None:
        """Return the share of right pixels, 0 to 1, within ``width_px`` of a boundary; None where there are none."""
        n_pixels = sum(self.n_pixels[:width_px])
        return sum(self.n_right[:width_px]) / n_pixels if n_pixels else None


def count_trimap(predicted: NDArray[np.uint8], labels: NDArray[np.uint8], distance: NDArray[np.uint8]) -> TrimapCounts:
    """Count pixels and right pixels by distance; all arrays are (height, width), ``distance`` is that of `boundary_distance`."""
    near = (labels != IGNORED) & (distance <= WIDEST_PX)
    at = distance[near]
    right = predicted[near] == labels[near]
    return TrimapCounts(
        n_pixels=tuple(np.bincount(at, minlength=WIDEST_PX + 1)[1:].tolist()),
        n_right=tuple(np.bincount(at[right], minlength=WIDEST_PX + 1)[1:].tolist()),
    )


def distance_in(labels: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Return `boundary_distance` within a window of ``labels``; what lies around it counts."""
    around = window.grow(WIDEST_PX + 1).clip((labels.shape[0], labels.shape[1]))
    assert around is not None
    return boundary_distance(labels[around.to_slices()])[window.relative_to(around).to_slices()]


def boundary_distance(labels: NDArray[np.uint8], *, widest_px: int = WIDEST_PX) -> NDArray[np.uint8]:
    """Return the distance of every pixel of (height, width) labels from the nearest boundary, px: 1 on it, 33 beyond ``widest_px``.

    Examples
    --------
    >>> boundary_distance(np.array([[0, 0, 0, 1, 1]], np.uint8)).tolist()
    [[3, 2, 1, 1, 2]]
    """
    reached = _on_boundary(labels)
    distance = np.full(labels.shape, WIDEST_PX + 1, np.uint8)
    distance[reached] = 1
    for step in range(2, widest_px + 1):
        wider = _grown(reached)
        distance[wider & ~reached] = step
        reached = wider
    return distance


def _on_boundary(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which pixels have an upright neighbour with the label of another class."""
    found = np.zeros(labels.shape, bool)
    for one, other in (((slice(1, None), ...), (slice(None, -1), ...)), ((..., slice(1, None)), (..., slice(None, -1)))):
        differ = (labels[one] != labels[other]) & (labels[one] != IGNORED) & (labels[other] != IGNORED)
        found[one] |= differ
        found[other] |= differ
    return found


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask with the eight neighbours of its pixels."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    wide = tall.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide
