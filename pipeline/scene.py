"""How do pixels get in? Open a raster of any kind, and read any window of it as a `Tile`.

`open_scene` chooses the reader (`pipeline.zarr_scene` for Zarr directories, `pipeline.bmp_scene` for BMP, `pipeline.gdal_scene`
for other files), which refuses what is damaged or not local. `read_reflected` lets a window reach outside the scene::

    scene     a b c d            columns 0 .. 3
    window  c b a b c d c b a b  columns -2 .. 7: the edge pixel is not repeated

so that the value at a position depends on the position and the scene, never on the window through which it is
seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bmp_scene import is_bmp, open_bmp_scene
from pipeline.errors import SourceError
from pipeline.gdal_scene import open_gdal_scene
from pipeline.scene_info import Scene, SceneInfo, SceneSpec, Tile, local_path
from pipeline.window import Window
from pipeline.zarr_scene import is_zarr, open_zarr_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Scene", "SceneInfo", "SceneSpec", "Tile", "open_scene", "read_reflected"]


def open_scene(spec: SceneSpec) -> Scene:
    """Open the raster of ``spec``: a Zarr directory, or a file of one of GDAL's allowed drivers.

    Raises
    ------
    SourceError
        The file is missing, not local, of another format, damaged, too large, or lacks a band that was asked
        for.
    """
    path = local_path(spec.uri)
    if not path.exists():
        raise SourceError(f"{spec.uri} does not exist; give the path of a raster file or of a Zarr directory")
    if not path.is_dir():
        return open_bmp_scene(spec) if is_bmp(path) else open_gdal_scene(spec)
    if is_zarr(path):
        return open_zarr_scene(spec)
    raise SourceError(f"{spec.uri} is a directory without zarr.json, .zarray or .zgroup; give a raster file or a Zarr directory")


def read_reflected(scene: Scene, window: Window) -> Tile:
    """Read a window that may reach outside the scene on any side by any amount.

    Pixels outside are those of the scene mirrored at its first and last pixel centres, again and again where
    needed (numpy's ``reflect``); ``valid`` is mirrored with them. A scene of one row or column repeats it.
    """
    rows = reflected_indices(window.row_off, window.height, scene.info.height)
    cols = reflected_indices(window.col_off, window.width, scene.info.width)
    source = Window.from_bounds(rows=(int(rows.min()), int(rows.max()) + 1), cols=(int(cols.min()), int(cols.max()) + 1))
    tile = scene.read(source)
    if source == window:
        return tile
    rows, cols = rows - source.row_off, cols - source.col_off
    return Tile(window=window, pixels=_pick(tile.pixels, rows, cols), valid=_pick(tile.valid, rows, cols))


def reflected_indices(start: int, count: int, size: int) -> NDArray[np.intp]:
    """Return the indices within ``0 .. size - 1`` that stand for ``start`` and what follows: a triangle wave.

    Examples
    --------
    >>> reflected_indices(-2, 10, 4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    """
    positions = np.arange(start, start + count, dtype=np.intp)
    if size == 1:
        return np.zeros_like(positions)
    period = 2 * (size - 1)
    phase = positions % period
    return np.minimum(phase, period - phase)


def _pick(array: NDArray[Any], rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[Any]:
    """Index the last two axes; in one step, so that no intermediate array is made."""
    return np.ascontiguousarray(array[..., rows[:, np.newaxis], cols])
