"""Pixels to what the network was trained on: stretched to the model's input range, then (x - mean) / std; nodata becomes 0, the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.network.spec import ModelSpec
    from pipeline.scene import Tile
    from pipeline.stretch import Stretch
    from pipeline.window import Window


def normalise(tile: Tile, window: Window, *, stretch: Stretch, model: ModelSpec) -> NDArray[np.float32]:
    """Return one network window of a tile, normalised.

    Parameters
    ----------
    tile
        Pixels of a window that contains ``window``.
    window
        The network window, in pixels of the scene.
    stretch
        The scene's own scale, to 0 to 255.
    model
        Gives the input range, and mean and std per band in its units.

    Returns
    -------
    (bands, height, width) float32.
    """
    inside = window.relative_to(tile.window).to_slices()
    values = to_input(tile.pixels[:, *inside], stretch=stretch, input_range=model.input_range)
    values -= np.asarray(model.mean, np.float32)[:, None, None]
    values /= np.asarray(model.std, np.float32)[:, None, None]
    values[:, ~tile.valid[inside]] = 0
    return values


def to_input(pixels: NDArray[Any], *, stretch: Stretch, input_range: tuple[float, float]) -> NDArray[np.float32]:
    """Return pixels (bands, height, width) of a scene in the units of a model whose lowest and highest value are ``input_range``."""
    values = stretch.apply(pixels)
    low, high = input_range
    if (low, high) != (0, 255):
        values *= np.float32((high - low) / 255)
        values += np.float32(low)
    return values
