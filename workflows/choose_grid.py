"""Which windows, overlap and blocks suit a scene? What a person leaves open is chosen here, and the choice is explained.

Windows and overlap decide labels, so they follow from the scene and the model alone, unless memory is short. A larger window has less edge
for its pixels, and a network sees badly near an edge; the sizes that cover the scene with little left over are preferred::

    scene      |--------------------------------|
    2 windows  |-----------------|                     step = window - overlap
                              |-----------------|      just reaches the edge: nothing is computed twice but the overlap

Blocks do not change the labels. They are as large as memory allows, up to a size at which the work on their edges no longer matters.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.grid import LARGEST_BLOCK_PX, Blocks, Lattice
from pipeline.network.footprint import margin_px, peak_activation_bytes
from pipeline.network.scales import unit_px
from pipeline.spec import Blend, GridSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.network.spec import MultiScaleSpec, NetworkSpec

OVERLAP_PX = 256
"""Where none is asked for. With windows of 2048 px 0.45 % of the labels then differ from those of one pass over the whole scene, with 128
px 0.84 % (the shipped model; docs/explanation/blocks-and-halos.md)."""

_WINDOWS_PX = (1024, 2304)
"""The smallest and the largest window that is considered for a scene that is larger."""
_WINDOW_BYTES = 7 * 2**28
"""Activations of one window in float32, bytes: a network with many of them gets smaller windows."""
_NEARLY = 1.05
"""Of windows that cost so little more than the cheapest, the largest is taken, less what its last row and column have outside."""
_LEAST_PX = 32
_SAMPLE_PX = 512
_BLOCKS_PX = (LARGEST_BLOCK_PX, 3072, 2048, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRequest:
    """What a person asks for; None: chosen here."""

    window_px: int | None = None
    """Side of the network windows, px."""
    overlap_px: int | None = None
    """What neighbouring windows share, px."""
    blend: Blend = "taper"
    """How they are joined."""
    block_px: int | None = None
    """Side of the unit of work, px."""

    def filled_from(self, grid: GridSpec) -> GridRequest:
        """Return the request with what it leaves open as it is in ``grid``."""
        return dataclasses.replace(
            self,
            window_px=self.window_px or grid.window_px,
            overlap_px=grid.overlap_px if self.overlap_px is None else self.overlap_px,
            block_px=self.block_px or grid.block_px,
        )


def complete(
    request: GridRequest,
    *,
    shape: tuple[int, int],
    network: NetworkSpec,
    multiscale: MultiScaleSpec,
    block_unit_px: int,
    largest_px: int | None = None,
) -> GridSpec:
    """Fill in what a request leaves open.

    Parameters
    ----------
    request
        What was asked for; kept as it is.
    shape
        (height, width) of the scene, px.
    network, multiscale
        Whose stride, margin and memory count.
    block_unit_px
        What a block is a multiple of, px.
    largest_px
        No larger window is chosen, px; None: 2304.
    """
    unit = unit_px(multiscale, network.output_stride)
    beyond = int(network.alignment == "corner")  # such networks are trained on sides of one pixel more
    overlap = request.overlap_px
    if overlap is None:
        overlap = _overlap(request, network, multiscale, unit=unit) + beyond
        if request.window_px is not None and (overlap >= request.window_px or (request.window_px - overlap) % unit):
            overlap = _overlap_within(request.window_px, unit=unit)
    largest = largest_px or _WINDOWS_PX[1]
    window = request.window_px or _window(shape, network, multiscale, overlap_px=overlap, unit=unit, largest_px=largest) + beyond
    if request.overlap_px is None and overlap >= window:
        overlap = _overlap_within(window, unit=unit)
    block = request.block_px or max(1, LARGEST_BLOCK_PX // block_unit_px) * block_unit_px
    return GridSpec(window_px=window, overlap_px=overlap, blend=request.blend, block_px=block)


def smaller_ones(request: GridRequest, *, block_unit_px: int) -> Iterator[tuple[GridRequest, int | None]]:
    """Yield requests that need less and less memory, and the largest window of each, px: smaller blocks first, which change no label."""
    blocks = [px for px in _BLOCKS_PX if px % block_unit_px == 0] if request.block_px is None else [request.block_px]
    for block in blocks:
        yield dataclasses.replace(request, block_px=block), None
    if request.window_px is None:
        for largest in (1536, 1024, 768, 512, 384):
            yield dataclasses.replace(request, block_px=blocks[-1] if blocks else None), largest


def coverage(shape: tuple[int, int], *, window_px: int, overlap_px: int) -> float:
    """Return how often a pixel of a scene is in a window, on average, with each window counted once."""
    return _n_windows(shape, window_px, overlap_px) * window_px**2 / (shape[0] * shape[1])


def _overlap(request: GridRequest, network: NetworkSpec, multiscale: MultiScaleSpec, *, unit: int) -> int:
    margin = margin_px(network, multiscale) if request.blend == "exact" else None
    wanted = OVERLAP_PX if margin is None else 2 * margin
    return math.ceil(wanted / unit) * unit


def _overlap_within(window_px: int, *, unit: int) -> int:
    """Return an overlap for a window that is too small for the usual one, or of another rest: about a quarter of it."""
    step = max(1, (3 * window_px // 4) // unit) * unit
    return max(0, window_px - step)


def _window(
    shape: tuple[int, int],
    network: NetworkSpec,
    multiscale: MultiScaleSpec,
    *,
    overlap_px: int,
    unit: int,
    largest_px: int,
) -> int:
    sample = max(_SAMPLE_PX // unit, 1) * unit
    per_pixel = peak_activation_bytes(network, window_px=sample, multiscale=multiscale) / sample**2
    within_memory = math.isqrt(int(_WINDOW_BYTES / per_pixel))
    whole = math.ceil(max(*shape, _LEAST_PX) / unit) * unit
    least = overlap_px // unit * unit + unit
    if whole < least and whole <= within_memory:
        return whole
    high = max(min(largest_px, within_memory, whole) // unit * unit, least)
    low = max(min(_WINDOWS_PX[0], whole, high) // unit * unit, least)
    cost = {px: coverage(shape, window_px=px, overlap_px=overlap_px) for px in range(low, high + 1, unit)}
    cheapest = min(cost.values())
    largest = max(px for px, times in cost.items() if times <= _NEARLY * cheapest)
    n_windows, most_px = _n_windows(shape, largest, overlap_px), _px_seen(shape, largest, overlap_px)
    enough = [px for px in cost if _n_windows(shape, px, overlap_px) == n_windows]
    return min(px for px in enough if _px_seen(shape, px, overlap_px) <= most_px)


def _n_windows(shape: tuple[int, int], window_px: int, overlap_px: int) -> int:
    """Return how many windows cover a scene."""
    lattice = Lattice(shape=shape, size_px=window_px, step_px=window_px - overlap_px)
    return lattice.n_rows * lattice.n_cols


def _px_seen(shape: tuple[int, int], window_px: int, overlap_px: int) -> int:
    """Return the pixels of the windows of all blocks, where each block sees its own."""
    seen = window_px**2
    for length in shape:
        line = (length, 1)
        lattice = Lattice(shape=line, size_px=window_px, step_px=window_px - overlap_px)
        blocks = Blocks(shape=line, block_px=LARGEST_BLOCK_PX)
        seen *= sum(len(lattice.touching(blocks.window(index))) for index in blocks)
    return seen
