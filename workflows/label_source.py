"""Where does the class of a pixel come from? A raster or polygons, read by window on the grid of the scene that they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from workflows.label_raster import open_raster
from workflows.label_spec import IGNORED, LabelSpec
from workflows.label_warp import on_grid
from workflows.memory_scene import MOST_BYTES, MemoryAllowance
from workflows.polygons import place_polygons, read_polygons

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.georef import Georef
    from pipeline.window import Window

__all__ = ["IGNORED", "LabelSource", "LabelSpec", "open_labels"]


class LabelSource(Protocol):
    """The labels of a scene; for one thread."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the scene."""
        ...

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return (height, width) class ids of a window inside the scene, 255: no label; SourceError where they cannot be read."""
        ...

    def close(self) -> None:
        """Give back what is open."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_labels(
    spec: LabelSpec, *, shape: tuple[int, int], georef: Georef, allowance: MemoryAllowance | None = None
) -> LabelSource:
    """Open the labels of a scene.

    Parameters
    ----------
    spec
        The file, and what its values mean.
    shape
        (height, width) of the scene.
    georef
        Where the scene lies.
    allowance
        How much may be kept in memory of files without random access (PNG); None: one file of at most `memory_scene.MOST_BYTES`.

    Raises
    ------
    SourceError
        The file is missing, damaged, of another grid than the scene (and ``reproject`` is not set), or does not say which classes it holds.
    SpecError
        A setting does not go with the kind of the file.
    MissingDependencyError
        Polygons need libraries that are not installed.
    """
    kept = allowance or MemoryAllowance(n_bytes=MOST_BYTES)
    if spec.is_polygons:
        if spec not in kept.polygons:
            kept.polygons[spec] = read_polygons(spec)
        return place_polygons(kept.polygons[spec], spec, shape=shape, georef=georef)
    raster = open_raster(spec)
    try:
        labels = kept.keep_labels(raster)
    except BaseException:
        raster.close()
        raise
    try:
        return on_grid(labels, spec, shape=shape, georef=georef)
    except BaseException:
        labels.close()
        raise
