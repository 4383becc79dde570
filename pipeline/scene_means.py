"""What are the mean features of a whole scene? For networks whose image-level branch averages over the scene, not over each window.

Measured once, before the first block, over network windows that are spread evenly over the scene: all of it where it is small.
Windows overlap by half and count up to the middle of the overlap, because the zeros around a window change the features near its edges.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.blend import axis_weights
from pipeline.grid import Lattice
from pipeline.network.image_pooling import feature_sums
from pipeline.network.multiscale import MultiScale
from pipeline.normalise import normalise
from pipeline.scene import Scene, read_reflected

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.network.deeplab import DeepLab
    from pipeline.network.spec import ModelSpec
    from pipeline.spec import SegmentSpec

MAX_WINDOWS = 64
"""At most so many windows are looked at; enough for a mean, and seconds to minutes of work."""


def measure_scene_means(
    scene: Scene,
    network: DeepLab,
    *,
    model: ModelSpec,
    spec: SegmentSpec,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[tuple[float, ...], ...]:
    """Return the mean of the last features over the valid pixels of a scene: (views, channels), zeros where nothing is valid.

    Parameters
    ----------
    scene
        The scene, with the bands that the network sees.
    network
        In evaluation mode, on any device.
    model, spec
        Normalisation, window and scales.
    on_progress
        Called with the windows that are done and those to do.
    """
    system = MultiScale(network, spec.multiscale)
    side, stride = spec.grid.window_px, network.spec.output_stride
    lattice = Lattice(shape=scene.info.shape, size_px=side, step_px=max(side // 2 // stride, 1) * stride)
    picked = _spread(lattice)
    shape = (len(system.views), network.backbone.high_level_channels)
    sums, counts = np.zeros(shape), np.zeros(shape[0])
    device = next(network.parameters()).device
    for done, index in enumerate(picked):
        tile = read_reflected(scene, lattice.window(index))
        counted = _counted(lattice, index) & tile.valid
        if counted.any():
            pixels = normalise(tile, tile.window, stretch=spec.stretch, model=model)
            with torch.inference_mode():
                found = feature_sums(system, torch.from_numpy(pixels)[None].to(device), torch.from_numpy(counted).to(device))
            sums += found[0].cpu().numpy()
            counts += found[1].cpu().numpy()
        on_progress(done + 1, len(picked))
    means = sums / np.maximum(counts, 1)[:, None]
    return tuple(tuple(float(np.float32(value)) for value in row) for row in means)


def _spread(lattice: Lattice) -> list[tuple[int, int]]:
    """Return at most `MAX_WINDOWS` squares of a lattice, in even rows and columns."""
    share = min(1.0, math.sqrt(MAX_WINDOWS / (lattice.n_rows * lattice.n_cols)))
    n_rows = max(1, min(lattice.n_rows, int(lattice.n_rows * share)))
    n_cols = max(1, min(lattice.n_cols, MAX_WINDOWS // n_rows))
    rows = np.linspace(0, lattice.n_rows - 1, n_rows).round().astype(int)
    cols = np.linspace(0, lattice.n_cols - 1, n_cols).round().astype(int)
    return [(int(row), int(col)) for row in rows for col in cols]


def _counted(lattice: Lattice, index: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels of a square count: those nearer to its middle than to that of a neighbour, without the scene's reflection."""
    window = lattice.window(index)
    rows = axis_weights(lattice, index[0], n=lattice.n_rows, blend="exact") > 0
    cols = axis_weights(lattice, index[1], n=lattice.n_cols, blend="exact") > 0
    rows &= np.arange(window.row_off, window.row_end) < lattice.shape[0]
    cols &= np.arange(window.col_off, window.col_end) < lattice.shape[1]
    return rows[:, None] & cols[None, :]
