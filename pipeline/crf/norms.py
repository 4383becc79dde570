"""By what is each kernel divided, so that pixels with few like them count as much as pixels with many?

As pydensecrf's symmetric normalisation: k_ij / sqrt(n_i n_j) with n_i = sum_j k_ij over the valid pixels, i itself among them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numba import float32

from pipeline.compiled import compiled
from pipeline.crf.lattice import PART_PX, ROWS_AHEAD, strips
from pipeline.crf.vertices import N_CHUNKS
from pipeline.lanes import prefetch

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

    from pipeline.crf.lattice import Lattice, Part
    from pipeline.crf.mean_field import Kernels

_TINY = 1e-20
"""Added to n, as pydensecrf does: no division by 0."""


def smoothness_norm(valid: NDArray[np.bool_], taps: Floats, pool: Executor) -> Floats:
    """Return 1 / sqrt(n) of the smoothness kernel for every pixel: (height, width) float32."""
    norm = np.empty(valid.shape, np.float32)
    ones = valid.astype(np.float32)

    def work(rows: tuple[int, int]) -> None:
        norm[slice(*rows)] = 1.0 / np.sqrt(_smoothed(ones, taps, *rows) + np.float32(_TINY))

    list(pool.map(work, strips(len(valid))))
    return norm


def normalise_weights(lattice: Lattice, norms: list[Floats], pool: Executor) -> None:
    """Multiply the weights of every pixel by 1 / sqrt(n) of the appearance kernel and divide them by its norm, in place.

    States carry the norms of the smoothness kernel, given as `visited` gives them; so both kernels are applied to the same states.
    """
    corners, scale = tuple(range(lattice.n_corners)), np.float32(lattice.scale)
    values = _filtered(lattice, [np.ones_like(own) for own in norms], pool)
    list(pool.map(lambda part, own: _scale(part.vertex, part.weight, values, own, scale, corners), lattice.parts, norms))


def whole_messages(lattice: Lattice, kernels: Kernels, norms: list[Floats], pool: Executor) -> list[Floats]:
    """Return what both kernels bring a pixel of all classes together, whose states add up to its norm: (pixels,) float32 by part."""
    valid, norm = kernels.valid, kernels.norm
    corners = tuple(range(lattice.n_corners))
    states = norm if valid.all() else np.where(valid, norm, np.float32(0.0))
    values = _filtered(lattice, norms, pool) if corners else np.empty(0, np.float32)

    def work(part: Part, own: Floats) -> Floats:
        message = kernels.w_smoothness * visited(_smoothed(states, kernels.taps, *part.rows), valid[slice(*part.rows)])
        if corners:
            message += kernels.w_appearance * _sliced(part.vertex, part.weight, values, corners)
        return np.asarray(own * message)

    return list(pool.map(work, lattice.parts, norms))


def _filtered(lattice: Lattice, states: list[Floats], pool: Executor) -> Floats:
    """Splat one number a pixel, given by part in the order in which pixels are visited, and blur: values of vertices and copies."""
    values = np.zeros(lattice.n_rows, np.float32)
    corners = tuple(range(lattice.n_corners))
    list(pool.map(lambda part, own: _splat(part.vertex, part.weight, own, values, corners), lattice.parts, states))
    own, copies = values[: lattice.n_vertices], values[lattice.n_vertices :]
    _gather(own, copies, lattice.copied)
    for runs, chunks in lattice.chains:
        list(pool.map(lambda i, runs=runs, chunks=chunks: _blur(own, runs, chunks[i], chunks[i + 1]), range(N_CHUNKS)))
    copies[:] = own[lattice.copied]
    return values


@compiled
def _smoothed(values: Floats, taps: Floats, start: int, stop: int) -> Floats:
    """Return rows of (height, width) values, smoothed along columns and rows."""
    height, width = values.shape
    reach = len(taps) // 2
    smoothed = np.zeros((stop - start, width), np.float32)
    row = np.empty(width + 2 * reach, np.float32)
    for y in range(start, stop):
        row[:] = 0
        for tap in range(len(taps)):
            beside = y + tap - reach
            if 0 <= beside < height:
                for x in range(width):
                    row[reach + x] += taps[tap] * values[beside, x]
        for tap in range(len(taps)):
            for x in range(width):
                smoothed[y - start, x] += taps[tap] * row[x + tap]
    return smoothed


@compiled
def visited(values: Floats, valid: NDArray[np.bool_]) -> Floats:
    """Return the values of a part's valid pixels in the order in which they are visited."""
    visited, n = np.empty(values.size, np.float32), 0
    for cell in range(0, valid.shape[1], PART_PX):
        for y in range(len(valid)):
            for x in range(cell, min(cell + PART_PX, valid.shape[1])):
                visited[n] = values[y, x]
                n += valid[y, x]
    return visited[:n]


@compiled
def _splat(vertex: NDArray[np.int32], weight: Floats, states: Floats, values: Floats, corners: tuple[int, ...]) -> None:
    for pixel in range(len(states)):
        for k in range(len(corners)):
            corner = pixel * len(corners) + k
            values[vertex[corner]] += weight[corner] * states[pixel]


@compiled
def _sliced(vertex: NDArray[np.int32], weight: Floats, values: Floats, corners: tuple[int, ...]) -> Floats:
    sliced = np.empty(len(vertex) // len(corners), np.float32)
    for pixel in range(len(sliced)):
        sliced[pixel] = _sliced_one(vertex, weight, values, pixel, corners)
    return sliced


@compiled
def _sliced_one(vertex: NDArray[np.int32], weight: Floats, values: Floats, pixel: int, corners: tuple[int, ...]) -> np.float32:
    value: np.float32 = float32(0.0)
    for k in range(len(corners)):
        corner = pixel * len(corners) + k
        value += weight[corner] * values[vertex[corner]]
    return value


@compiled
def _scale(
    vertex: NDArray[np.int32], weight: Floats, values: Floats, norms: Floats, scale: np.float32, corners: tuple[int, ...]
) -> None:
    for pixel in range(len(norms)):
        density = _sliced_one(vertex, weight, values, pixel, corners)
        factor = float32(1.0) / (math.sqrt(scale * density + float32(_TINY)) * norms[pixel])
        for k in range(len(corners)):
            weight[pixel * len(corners) + k] *= factor


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
