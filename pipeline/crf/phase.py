"""Where in the permutohedral lattice does a tile lie, so that all tiles of a scene share one lattice?

A lattice whose origin were the corner of each tile would cut the same pixels into other simplices in every tile, and labels would differ
by that alone. A shift of a position by a whole period maps the lattice onto itself, so that a tile far out in a scene needs only the
rest: small numbers, exact in float32.
"""

from __future__ import annotations

import math


def phase(offset_px: tuple[int, int], *, theta_px: float, n_features: int) -> tuple[float, float]:
    """Return what to add to (row, column) inside a tile, px.

    Parameters
    ----------
    offset_px
        (row, column) of the tile in its scene.
    theta_px
        Standard deviation of the kernel, px.
    n_features
        Dimension of the lattice; row and column are its first two features, as in pydensecrf.
    """
    row, column = (math.fmod(at, period(axis, theta_px, n_features)) for at, axis in zip(offset_px, (0, 1), strict=True))
    return row, column


def elevation(axis: int, n_features: int) -> float:
    """Return what feature ``axis`` is multiplied by, so that the blur has the standard deviation 1 (Adams et al. 2010, section 3.1)."""
    return math.sqrt(2.0 / 3.0) * (n_features + 1) / math.sqrt((axis + 1.0) * (axis + 2.0))


def period(axis: int, theta_px: float, n_features: int) -> float:
    """Return by how many px feature 0 (row) or 1 (column) may be shifted without changing the lattice.

    With c the elevated feature, elevation adds c to the coordinates before the feature's own and subtracts (axis + 1) c there. With
    c = d + 1 that is a vector of the lattice.
    """
    return (n_features + 1) * theta_px / elevation(axis, n_features)
