"""How do the scores of a network lie over the pixels of a window?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.network.choices import Alignment
    from pipeline.network.spec import MultiScaleSpec, NetworkSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """How the scores of a window lie over its pixels: one cell per ``factor`` pixels, bilinear between them (`resize.upsample`)."""

    factor: int = 1
    """Pixels per cell; 1: a score for every pixel."""
    alignment: Alignment = "centre"
    """``centre``: cell i lies over pixels factor * i ... factor * (i + 1) - 1. ``corner``: at pixel factor * i."""

    def n_covering(self, n_pixels: int) -> int:
        """Return the cells along one axis that cover ``n_pixels``."""
        if self.alignment == "corner" and self.factor > 1:
            return -(-(n_pixels - 1) // self.factor) + 1
        return -(-n_pixels // self.factor)

    def between(self, n_pixels: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
        """Return where ``n_pixels`` in a row take their scores: the cell before each, the cell after it, and the share of the latter.

        They are kept, and not to be changed.
        """
        return _between(self, n_pixels)


@lru_cache(maxsize=64)
def _between(cells: Cells, n_pixels: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    pixel = np.arange(n_pixels)
    last = cells.n_covering(n_pixels) - 1
    position = pixel / cells.factor if cells.alignment == "corner" else np.clip((pixel + 0.5) / cells.factor - 0.5, 0, last)
    before = np.floor(position).astype(np.intp)
    return before, np.minimum(before + 1, last), (position - before).astype(np.float32)


def cells_of(network: NetworkSpec, multiscale: MultiScaleSpec) -> Cells:
    """Return how the scores of a network lie over the pixels: as it gives them for a single view, else every pixel has its own."""
    return Cells(factor=network.score_stride, alignment=network.alignment) if multiscale.is_single else Cells()
