"""By what is each kernel divided, so that pixels with few like them count as much as pixels with many?

As pydensecrf's symmetric normalisation: k_ij / sqrt(n_i n_j) with n_i = sum_j k_ij over the valid pixels, i itself among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import float32

from pipeline.compiled import compiled
from pipeline.crf.lattice import PART_PX, ROWS_AHEAD
from pipeline.crf.vertices import N_CHUNKS
from pipeline.lanes import prefetch

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

    from pipeline.crf.lattice import Lattice

_TINY = 1e-20
"""Added to n, as pydensecrf does: no division by 0."""


def smoothness_norm(valid: NDArray[np.bool_], taps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / sqrt(n) of the smoothness kernel for every pixel: (height, width) float32."""
    reach = len(taps) // 2
    height, width = valid.shape
    rows = np.pad(valid.astype(np.float32), ((reach, reach), (0, 0)))
    summed = sum(tap * rows[at : at + height] for at, tap in enumerate(taps))
    columns = np.pad(np.asarray(summed, np.float32), ((0, 0), (reach, reach)))
    total = sum(tap * columns[:, at : at + width] for at, tap in enumerate(taps))
    return np.asarray(1.0 / np.sqrt(np.asarray(total) + np.float32(_TINY)), np.float32)


def normalise_weights(lattice: Lattice, valid: NDArray[np.bool_], norm: NDArray[np.float32], pool: Executor) -> None:
    """Multiply the weights of every pixel by 1 / sqrt(n) of the appearance kernel and divide them by ``norm``, in place.

    States carry ``norm`` of the smoothness kernel; so both kernels are applied to the same states.
    """
    values = np.zeros(lattice.n_rows, np.float32)
    list(pool.map(lambda part: _splat_ones(part.vertex, part.weight, values), lattice.parts))
    own, copies = values[: lattice.n_vertices], values[lattice.n_vertices :]
    _gather(own, copies, lattice.copied)
    for runs, chunks in lattice.chains:
        list(pool.map(lambda i, runs=runs, chunks=chunks: _blur(own, runs, chunks[i], chunks[i + 1]), range(N_CHUNKS)))
    copies[:] = own[lattice.copied]
    corners = tuple(range(lattice.n_corners))
    scale = np.float32(lattice.scale)
    list(pool.map(lambda part: _scale(part.vertex, part.weight, part.rows, valid, norm, values, scale, corners), lattice.parts))


@compiled
def _splat_ones(vertex: NDArray[np.int32], weight: Floats, values: Floats) -> None:
    for at in range(len(vertex)):
        values[vertex[at]] += weight[at]


@compiled
def _gather(values: Floats, copies: Floats, copied: NDArray[np.int32]) -> None:
    for copy in range(len(copied)):
        values[copied[copy]] += copies[copy]


@compiled
def _blur(values: Floats, runs: NDArray[np.int32], start: int, stop: int) -> None:
    """Blur along one direction, in place; a run ends with ~vertex."""
    last = len(runs) - 1
    value, previous = values[max(runs[start], ~runs[start])] if start < stop else float32(0.0), float32(0.0)
    for at in range(start, stop):
        ahead = runs[min(at + ROWS_AHEAD, last)]
        prefetch(values, max(ahead, ~ahead))
        vertex, following = runs[at], runs[min(at + 1, last)]
        goes_on = float32(0.5) if vertex >= 0 else float32(0.0)
        beyond = values[max(following, ~following)]
        values[max(vertex, ~vertex)] = value + (previous + goes_on * beyond)
        value, previous = beyond, goes_on * value


@compiled
def _scale(
    vertex: NDArray[np.int32],
    weight: Floats,
    rows: tuple[int, int],
    valid: NDArray[np.bool_],
    norm: Floats,
    values: Floats,
    scale: np.float32,
    corners: tuple[int, ...],
) -> None:
    n = len(corners)
    at = 0
    for cell in range(0, valid.shape[1], PART_PX):
        for y in range(rows[0], rows[1]):
            for x in range(cell, min(cell + PART_PX, valid.shape[1])):
                if valid[y, x]:
                    density = float32(0.0)
                    for k in range(n):
                        density += weight[at + k] * values[vertex[at + k]]
                    factor = float32(1.0) / (np.sqrt(scale * density + float32(_TINY)) * norm[y, x])
                    for k in range(n):
                        weight[at + k] *= factor
                    at += n
