"""Do labels lie on the grid of the scene, and if not, how do they get there?

Two rasters share a grid where they have the same size, CRS and transform (to a tenth of a pixel); what one of them does not say counts as
equal. Labels of another grid are brought over by nearest neighbour, exactly, so that a window shows the same whatever was read before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError
from rasterio.warp import reproject, transform

from pipeline.errors import SourceError
from pipeline.gdal_scene import GDAL_ERRORS, gdal_environment
from pipeline.window import Window
from workflows.label_spec import IGNORED

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from pipeline.georef import Georef
    from workflows.label_raster import RasterLabels
    from workflows.memory_scene import MemoryLabels

    Labels = RasterLabels | MemoryLabels
    from workflows.label_spec import LabelSpec

_TOLERANCE_PX = 0.1
_MOST_SOURCE_PX = 2**26
_PROBES = 17
_NOWHERE = CRS.from_epsg(3857)
"""Stands for a CRS that neither side has: both are planes, and the same one."""


class WarpedLabels:
    """Labels of another grid, on that of the scene."""

    def __init__(self, source: Labels, *, shape: tuple[int, int], georef: Georef, crs: tuple[CRS, CRS]) -> None:
        self._source, self._shape, self._georef = source, shape, georef
        self._crs, self._source_crs = crs

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the scene."""
        return self._shape

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return (height, width) class ids of a window inside the scene, 255: no label, or beyond the labels."""
        labels = np.full(window.shape, IGNORED, np.uint8)
        source = self.seen_by(window)
        if source is None:
            return labels
        if source.n_pixels > _MOST_SOURCE_PX and window.n_pixels > 1:
            return self._read_halves(window)
        with gdal_environment():
            reproject(
                self._source.read(source),
                labels,
                src_transform=_affine(self._source.info.georef.for_window(source)),
                src_crs=self._source_crs,
                src_nodata=IGNORED,
                dst_transform=_affine(self._georef.for_window(window)),
                dst_crs=self._crs,
                dst_nodata=IGNORED,
                resampling=Resampling.nearest,
                tolerance=0,
            )
        return labels

    def close(self) -> None:
        """Give back the file handle."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read_halves(self, window: Window) -> NDArray[np.uint8]:
        rows, cols = (window.row_off, window.row_end), (window.col_off, window.col_end)
        axis = 0 if window.height >= window.width else 1
        start, end = (rows, cols)[axis]
        middle = (start + end) // 2
        spans = (start, middle), (middle, end)
        parts = [
            Window.from_bounds(rows=span, cols=cols) if axis == 0 else Window.from_bounds(rows=rows, cols=span) for span in spans
        ]
        return np.concatenate([self.read(part) for part in parts], axis=axis)

    def seen_by(self, window: Window) -> Window | None:
        """Return which pixels of the labels a window of the scene may show, or None; found by a lattice of points, and a margin."""
        cols, rows = np.meshgrid(
            np.linspace(window.col_off, window.col_end, _PROBES), np.linspace(window.row_off, window.row_end, _PROBES)
        )
        x, y = _move(_affine(self._georef), cols.ravel(), rows.ravel())
        with gdal_environment():
            x, y = (np.asarray(values) for values in transform(self._crs, self._source_crs, x.tolist(), y.tolist()))
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any():
            return None
        spans = []
        for values in _move(~_affine(self._source.info.georef), x[known], y[known]):
            low, high = float(values.min()), float(values.max())
            margin = 2 + (high - low) / 8
            spans.append((int(np.floor(low - margin)), int(np.ceil(high + margin))))
        return Window.from_bounds(cols=spans[0], rows=spans[1]).clip(self._source.shape)


def on_grid(labels: Labels, spec: LabelSpec, *, shape: tuple[int, int], georef: Georef) -> Labels | WarpedLabels:
    """Return labels on the grid of a scene of ``shape`` and ``georef``; SourceError where they have another one and may not be warped."""
    theirs = labels.info.georef
    reason = _difference(labels.shape, theirs, shape=shape, georef=georef)
    if reason is None:
        return labels
    both = (
        f"{spec.path} has {_describe(labels.shape, theirs)}, and the scene {_describe(shape, georef)}: they differ in {reason}, and both "
        "must cover the same pixels"
    )
    if not spec.reproject:
        raise SourceError(f"{both}: correct the pairing, resample one, or set reproject to bring the labels to the scene's grid")
    if theirs.transform is None or georef.transform is None:
        raise SourceError(
            f"{both}; reproject needs a transform on both sides: correct the pairing, or georeference the file without one"
        )
    crs, source_crs = _crs(georef), _crs(theirs)
    known = crs or source_crs or _NOWHERE
    warped = WarpedLabels(labels, shape=shape, georef=georef, crs=(crs or known, source_crs or known))
    if warped.seen_by(Window.of_shape(shape)) is None:
        raise SourceError(f"{both}; nothing of the labels lies on the scene: correct the pairing")
    return warped


def _difference(theirs: tuple[int, int], their_georef: Georef, *, shape: tuple[int, int], georef: Georef) -> str | None:
    """Return in what two grids differ; None where they are one."""
    if theirs != shape:
        return "size"
    crs, their_crs = _crs(georef), _crs(their_georef)
    if crs is not None and their_crs is not None and crs != their_crs and georef.epsg != their_georef.epsg:
        return "CRS"
    if georef.transform is None or their_georef.transform is None:
        return None
    corners = np.array([(0, 0), (0, shape[0]), (shape[1], 0), (shape[1], shape[0])], float).T
    found = _move(~_affine(georef), *_move(_affine(their_georef), *corners))
    return "transform" if np.abs(np.array(found) - corners).max() > _TOLERANCE_PX else None


def _affine(georef: Georef) -> Affine:
    assert georef.transform is not None
    return Affine(*georef.transform)


def _move(by: Affine, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y under an affine map."""
    return by.a * x + by.b * y + by.c, by.d * x + by.e * y + by.f


def _crs(georef: Georef) -> CRS | None:
    if georef.crs_wkt is None:
        return None
    try:
        return CRS.from_wkt(georef.crs_wkt)
    except (CRSError, *GDAL_ERRORS):
        return None


def _describe(shape: tuple[int, int], georef: Georef) -> str:
    place = (
        "no transform"
        if georef.transform is None
        else f"the transform ({', '.join(f'{number:.10g}' for number in georef.transform)})"
    )
    return f"{shape[0]} x {shape[1]} px, {name_crs(georef)} and {place}"


def name_crs(georef: Georef) -> str:
    """Return a short name of a CRS."""
    if georef.crs_wkt is None:
        return "no CRS"
    named = georef.crs_wkt.split('"')
    return f"EPSG:{georef.epsg}" if georef.epsg else f"the CRS {named[1] if len(named) > 1 else named[0][:40]!r}"
