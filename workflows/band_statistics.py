"""What are the mean and the deviation of each band? Over all valid pixels of the ground that is trained on, read once, strip by strip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import SourceError
from pipeline.window import tiling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from workflows.split import ScenePart

_SIDE_PX = 1024
_LEAST_VARIANCE = 1e-12


def band_statistics(parts: Sequence[ScenePart]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per band over ``parts``, each scene counted once whatever its size, in units of the model's input.

    Raises
    ------
    SourceError
        A file is damaged, or has no valid pixel in its part.
    """
    moments = np.mean([_moments(part) for part in parts], axis=0)
    mean, square = moments
    deviation = np.sqrt(np.maximum(square - mean**2, _LEAST_VARIANCE))
    return tuple(mean.tolist()), tuple(deviation.tolist())


def _moments(part: ScenePart) -> NDArray[np.float64]:
    """Return (2, bands): the mean of the valid pixels, and that of their squares."""
    sums, count = np.zeros((2, part.n_bands)), 0
    for window in tiling(part.shape, height=_SIDE_PX, width=_SIDE_PX):
        counted = part.ground(window)
        if not counted.any():
            continue
        found = part.scene.read(window)
        values = found.pixels[:, found.valid & counted].astype(np.float64)
        sums += values.sum(axis=1), np.einsum("bp,bp->b", values, values)
        count += values.shape[1]
    if not count:
        raise SourceError(
            f"{part.name} has no pixel with data on the ground that is trained on; leave the scene out, or correct its nodata"
        )
    return sums / count
