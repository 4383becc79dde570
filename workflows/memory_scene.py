"""Which scenes and labels are kept in memory? Small ones whose windows cannot be read alone, such as PNG and JPEG.

A window at the bottom of a PNG costs the decoding of all rows above it. Such a file is decoded once, and its pixels are kept as stored, as
long as one of them takes at most `MOST_BYTES` and all of them at most `MOST_BYTES_IN_ALL`; others are read by window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.scene_info import Tile, check_inside
from pipeline.window import Window
from workflows.open_files import OpenFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from numpy.typing import NDArray

    from pipeline.scene import Scene, SceneInfo
    from workflows.label_raster import RasterLabels
    from workflows.label_spec import LabelSpec
    from workflows.polygons import PolygonFile

MOST_BYTES = 256 * 2**20
"""Largest scene that is kept in memory, bytes, decoded."""
MOST_BYTES_IN_ALL = 4 * 2**30
"""Most that all scenes of a training may take together, bytes, decoded."""
_STRIP_ROWS = 512


class MemoryScene:
    """A scene whose pixels are an array."""

    def __init__(self, pixels: NDArray[Any], valid: NDArray[np.bool_] | None, info: SceneInfo, bands: tuple[int, ...]) -> None:
        """Hold ``pixels`` (bands, height, width) and ``valid`` (height, width); None: all are."""
        self._pixels, self._valid, self._info, self._bands = pixels, valid, info, bands

    @property
    def info(self) -> SceneInfo:
        """What the header says."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """The selected bands, counted from 1."""
        return self._bands

    def read(self, window: Window) -> Tile:
        """Return a view of a window inside the scene; WindowError outside."""
        check_inside(self._info, window)
        at = window.to_slices()
        valid = np.ones(window.shape, np.bool_) if self._valid is None else self._valid[at]
        return Tile(window=window, pixels=self._pixels[:, *at], valid=valid)

    def close(self) -> None:
        """Let go of the pixels."""
        self._pixels = self._pixels[:, :0, :0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class MemoryLabels:
    """Labels that are an array."""

    def __init__(self, ids: NDArray[np.uint8], info: SceneInfo) -> None:
        """Hold ``ids`` (height, width) of a raster with the header ``info``."""
        self._ids, self._info = ids, info

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the raster."""
        return self._info.shape

    @property
    def info(self) -> SceneInfo:
        """What the raster's header says."""
        return self._info

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return a copy of (height, width) class ids of a window inside the raster, 255: no label; WindowError outside."""
        check_inside(self._info, window)
        return self._ids[window.to_slices()].copy()

    def close(self) -> None:
        """Let go of the labels."""
        self._ids = self._ids[:0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(slots=True, kw_only=True)
class MemoryAllowance:
    """How much more may be kept, and which files are open."""

    n_bytes: int = MOST_BYTES_IN_ALL
    """Bytes that are left."""
    files: OpenFiles = field(default_factory=OpenFiles)
    """What is read by window."""
    polygons: dict[LabelSpec, PolygonFile] = field(default_factory=dict)
    """Files with polygons that were read, since one may serve many scenes."""

    def keep(self, scene: Scene, reopen: Callable[[], Scene]) -> Scene:
        """Return the scene in memory, and close the file, where that pays and fits; else as one that ``reopen`` opens when it is needed."""
        info = scene.info
        needed = info.height * info.width * (len(scene.bands) * np.dtype(info.dtype).itemsize + (info.mask_kind != "none"))
        if info.random_access or needed > min(self.n_bytes, MOST_BYTES):
            return self.files.share(scene, reopen)
        self.n_bytes -= needed
        with scene:
            return _decoded(scene)

    def keep_labels(self, labels: RasterLabels) -> RasterLabels | MemoryLabels:
        """Return the labels in memory, one byte a pixel, and close the file, where that pays and fits; else the file is among ``files``."""
        needed = labels.shape[0] * labels.shape[1]
        if labels.info.random_access or needed > min(self.n_bytes, MOST_BYTES):
            return labels.among(self.files)
        self.n_bytes -= needed
        with labels:
            ids = np.concatenate([labels.read(strip) for strip in _strips(labels.shape)])
        return MemoryLabels(ids, labels.info)


def _decoded(scene: Scene) -> MemoryScene:
    info = scene.info
    pixels = np.empty((len(scene.bands), *info.shape), info.dtype)
    valid = np.ones(info.shape, np.bool_)
    for strip in _strips(info.shape):
        tile = scene.read(strip)
        pixels[:, *strip.to_slices()], valid[strip.to_slices()] = tile.pixels, tile.valid
    return MemoryScene(pixels, None if valid.all() else valid, info, scene.bands)


def _strips(shape: tuple[int, int]) -> list[Window]:
    """List strips of whole rows, from top to bottom."""
    height, width = shape
    starts = range(0, height, _STRIP_ROWS)
    return [Window(row_off=row, col_off=0, height=min(_STRIP_ROWS, height - row), width=width) for row in starts]
