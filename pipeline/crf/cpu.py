"""The backend of the processor: mean field over our own permutohedral lattice (`pipeline.crf.cpu_tile`), and what it needs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from pipeline.lane_count import class_groups
from pipeline.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.crf.energy import CrfSpec

VERTICES_PER_PIXEL = 1.5
"""What the memory bound expects of a scene, copies at the edges of parts among them."""
_LOOKUP_BYTES = 64
"""Keys and what is sorted with them while the lattice is built, per vertex; what more threads take is less than the states, later."""


def require() -> None:
    """Do nothing: what this backend needs is installed with atrous."""


def tile_bytes(n_pixels: int, *, n_classes: int, n_bands: int) -> int:
    """Return what refining a tile of so many pixels holds beside its arguments, bytes.

    Exact but for the vertices: imagery has 1.2 of them a pixel at theta_beta 3 and 0.1 at 13, pure noise up to d + 1.
    """
    groups, corners = class_groups(n_classes), n_bands + 3
    lanes = len(groups) * len(groups[0])
    # log P, states before and after, corners, the last class, norm and what rests
    pixel = 2 * lanes + 2 * 2 * lanes + 8 * corners + 8 + 6
    vertex = (4 + 2) * lanes + 4 * corners + _LOOKUP_BYTES  # splatted and sliced, chains, keys
    return int(n_pixels * (pixel + VERTICES_PER_PIXEL * vertex))


def refine(  # noqa: PLR0913
    probabilities: NDArray[np.float32],
    guide: NDArray[np.float32],
    valid: NDArray[np.bool_],
    spec: CrfSpec,
    *,
    offset_px: tuple[int, int] = (0, 0),
    core: Window | None = None,
    threads: int = 1,
    device: str = "cpu",  # noqa: ARG001
) -> NDArray[np.float32]:
    """Refine the probabilities of one tile: `pipeline.crf.backends.Backend.refine`, on ``threads`` threads; ``device`` is not used."""
    if not valid.any():
        return probabilities
    from pipeline.crf.cpu_tile import CpuTile  # noqa: PLC0415  (numba, which who plans a run does without, takes a third of a second)

    with ThreadPoolExecutor(threads) as pool:
        return CpuTile(probabilities, guide, np.ascontiguousarray(valid), spec, offset_px, pool).refine(
            core or Window.of_shape(valid.shape)
        )
