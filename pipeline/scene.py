"""How do pixels get in? Open a raster of any kind, and read any window of it as a `Tile`.

`open_scene` chooses the reader (`pipeline.zarr_scene` for Zarr directories, `pipeline.bmp_scene` for BMP, `pipeline.vrt_scene` for VRT
where that is allowed, `pipeline.gdal_scene` for other files), which refuses what is damaged or not local; or lets
`pipeline.tolerant_scene` make the best of it, where the spec says so. `read_reflected` lets a window reach outside the scene::

    scene     a b c d            columns 0 .. 3
    window  c b a b c d c b a b  columns -2 .. 7: the edge pixel is not repeated

so that the value at a position depends on the position and the scene, never on the window through which it is
seen.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bmp_scene import is_bmp, open_bmp_scene
from pipeline.errors import SourceError
from pipeline.gdal_scene import DRIVERS, open_gdal_scene
from pipeline.scene_info import Scene, SceneInfo, SceneSpec, Tile, check_regular, local_path
from pipeline.tolerant_scene import TolerantScene
from pipeline.vrt import is_vrt, read_vrt
from pipeline.vrt_scene import VrtScene, open_vrt_scene
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_STRIP_ROWS = 1024
"""About so many rows of a window that is mirrored are read at once."""
_MIN_RUN_PX = 16
"""Scenes that are smaller on a side are mirrored pixel by pixel."""

__all__ = ["Scene", "SceneInfo", "SceneSpec", "Tile", "open_scene", "read_reflected", "scene_files", "unreadable_in"]


def open_scene(spec: SceneSpec, *, indices: bool = False) -> Scene:
    """Open the raster of ``spec``: a Zarr directory, or a file of one of GDAL's allowed drivers.

    A file whose pixels are numbers of colours in a palette is refused, unless ``indices`` says that the numbers are wanted.

    Raises
    ------
    SourceError
        The file is missing, not local, of another format, damaged, too large, or lacks a band that was asked
        for.
    """
    path = local_path(spec.uri)
    if not path.exists():
        raise SourceError(f"{spec.uri} does not exist; give the path of a raster file or of a Zarr directory")
    check_regular(path)
    if not path.is_dir():
        return _open_file(spec, path, indices=indices)
    from pipeline.zarr_scene import is_zarr, open_zarr_scene  # noqa: PLC0415  (zarr, which takes longer to import than all else here)

    if is_zarr(path):
        return _tolerating(spec, open_zarr_scene)
    raise SourceError(f"{spec.uri} is a directory without zarr.json, .zarray or .zgroup; give a raster file or a Zarr directory")


def unreadable_in(scene: Scene, window: Window) -> tuple[Window, ...]:
    """Return the places in a window that was read and could not be read; none where that is an error (`SceneSpec.on_read_error`)."""
    return scene.unreadable(window) if isinstance(scene, TolerantScene | VrtScene) else ()


def scene_files(spec: SceneSpec) -> list[Path]:
    """Return the files that hold the pixels: one, all in a Zarr directory, or a VRT and what it is made of."""
    path = Path(spec.uri)
    if path.is_dir():
        root = path.resolve()
        inside = (item for item in path.rglob("*") if not item.is_symlink() or item.resolve().is_relative_to(root))
        return sorted(item for item in inside if item.is_file())
    return [path, *(file for file in read_vrt(path).files if file.is_file())] if spec.allow_vrt and is_vrt(path) else [path]


def _open_file(spec: SceneSpec, path: Path, *, indices: bool) -> Scene:
    try:
        bmp, vrt = is_bmp(path), is_vrt(path)
    except OSError as error:
        raise SourceError(f"{spec.uri} cannot be read: {error}; check its rights and the disk") from error
    if bmp:
        return _tolerating(spec, open_bmp_scene)
    if not vrt:
        return _open_gdal(spec, indices=indices)
    if spec.allow_vrt:
        return open_vrt_scene(spec, _open_gdal)
    raise SourceError(
        f"{spec.uri} does not open: it is a VRT, which names other files; the allowed drivers are {', '.join(DRIVERS)}: convert it with "
        "gdal_translate -of COG, or give --allow-vrt if it is a plain mosaic of files in its own folder"
    )


def _open_gdal(spec: SceneSpec, *, indices: bool = False) -> Scene:
    first = open_gdal_scene(spec, indices=indices)
    if spec.on_read_error == "fail":
        return first
    with first:
        in_order, lost = first.in_order, first.lost
    return TolerantScene(lambda: open_gdal_scene(spec), in_order=in_order, lost=lost)


def _tolerating(spec: SceneSpec, opener: Callable[[SceneSpec], Scene]) -> Scene:
    return opener(spec) if spec.on_read_error == "fail" else TolerantScene(lambda: opener(spec))


def read_reflected(scene: Scene, window: Window) -> Tile:
    """Read a window that may reach outside the scene on any side by any amount.

    Pixels outside are those of the scene mirrored at its first and last pixel centres, again and again where
    needed (numpy's ``reflect``); ``valid`` is mirrored with them. A scene of one row or column repeats it.
    """
    rows = reflected_indices(window.row_off, window.height, scene.info.height)
    cols = reflected_indices(window.col_off, window.width, scene.info.width)
    source = Window.from_bounds(rows=(int(rows.min()), int(rows.max()) + 1), cols=(int(cols.min()), int(cols.max()) + 1))
    if source == window:
        return scene.read(source)
    pixels, valid = None, np.empty(window.shape, np.bool_)
    for strip in _strips(source, scene.info):  # so that there are not two arrays of this size at a time
        tile = scene.read(strip)
        if pixels is None:
            pixels = np.empty((len(tile.pixels), *window.shape), tile.pixels.dtype)
        here = np.flatnonzero((rows >= strip.row_off) & (rows < strip.row_end))
        taken_rows, taken_cols = rows[here] - strip.row_off, cols - source.col_off
        if min(scene.info.shape) < _MIN_RUN_PX:
            pixels[:, here], valid[here] = _pick(tile.pixels, taken_rows, taken_cols), _pick(tile.valid, taken_rows, taken_cols)
            continue
        for parts in itertools.product(_runs(here, taken_rows), _runs(np.arange(window.width), taken_cols)):
            onto, taken = zip(*parts, strict=True)
            pixels[:, *onto], valid[onto] = tile.pixels[:, *taken], tile.valid[taken]
    assert pixels is not None
    return Tile(window=window, pixels=pixels, valid=valid)


def _strips(window: Window, info: SceneInfo) -> Iterator[Window]:
    """Cut a window into strips that end with blocks of the file."""
    n_rows = -(-_STRIP_ROWS // info.block_shape[0]) * info.block_shape[0]
    start = window.row_off
    while start < window.row_end:
        end = min((start // n_rows + 1) * n_rows, window.row_end)
        yield Window.from_bounds(rows=(start, end), cols=(window.col_off, window.col_end))
        start = end


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


def _runs(onto: NDArray[np.intp], taken: NDArray[np.intp]) -> Iterator[tuple[slice, slice]]:
    """Cut pairs of indices into runs in which the former rise by one, and the latter rise or fall by one: slices, which copy far faster."""
    steps = np.where(np.diff(onto) == 1, np.diff(taken), 0)
    start = 0
    while start < len(onto):
        stop = start + 1
        if start < len(steps) and steps[start]:
            changes = np.flatnonzero(steps[start:] != steps[start])
            stop = start + 1 + int(changes[0] if len(changes) else len(steps) - start)
        first, last = int(taken[start]), int(taken[stop - 1])
        beyond = last + (1 if last >= first else -1)
        yield (
            slice(int(onto[start]), int(onto[start]) + stop - start),
            slice(first, None if beyond < 0 else beyond, 1 if last >= first else -1),
        )
        start = stop
