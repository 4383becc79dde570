"""How do results reach people who do not use Zarr? As a GeoTIFF for a GIS, or as a picture.

The file appears under its name only when it is whole.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.decimate import cell_windows, decimate_window, decimated_size, majority, mean
from pipeline.durable_file import make_directory_durably, name_partial, publish
from pipeline.errors import SourceError, SpecError, StoreError
from pipeline.geotiff import n_label_windows, write_label_cog
from pipeline.labels import NODATA_LABEL
from pipeline.render import MIN_SIDE_PX, Picture, choose_factor, render
from pipeline.scene import open_scene
from pipeline.store import open_layout, read_labels
from pipeline.stretch import estimate_stretch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.scene import Scene, SceneSpec
    from pipeline.store import StoreLayout

    Progress = Callable[[int, int], None]

_log = logging.getLogger(__name__)

_GEOTIFF, _PICTURE = (".tif", ".tiff"), (".png",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What was exported."""

    dest: Path
    """The file."""
    n_bytes: int
    """Its length, bytes."""
    n_pixels: dict[str, int]
    """Pixels of each class in the whole output, by name."""
    n_nodata: int
    """Pixels without a class."""
    warnings: tuple[str, ...]
    """What the file lacks, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _PictureSpec:
    """How the picture is made."""

    max_side_px: int
    scene: SceneSpec | None
    opacity: float

    def __post_init__(self) -> None:
        if self.max_side_px < MIN_SIDE_PX:
            raise SpecError(f"a picture of {self.max_side_px} px was asked for; give at least {MIN_SIDE_PX} px")
        if not 0 <= self.opacity <= 1:
            raise SpecError(f"an opacity of {self.opacity} was asked for; give a number from 0 to 1")


class _Tally:
    """Counts labels and windows as they pass."""

    def __init__(self, n_windows: int, on_progress: Progress | None) -> None:
        self.counts: NDArray[np.int64] = np.zeros(256, np.int64)
        self._n_windows, self._n_done, self._on_progress = n_windows, 0, on_progress

    def add(self, labels: NDArray[np.uint8]) -> None:
        self.counts += np.bincount(labels.reshape(-1), minlength=256)
        self._n_done += 1
        if self._on_progress is not None:
            self._on_progress(self._n_done, self._n_windows)


def run(  # noqa: PLR0913 - the options of one command, each with a default
    out: Path,
    dest: Path,
    *,
    max_side_px: int = 1600,
    scene: SceneSpec | None = None,
    opacity: float = 0.55,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> ExportSummary:
    """Write the labels of ``out`` to ``dest``: a Cloud Optimized GeoTIFF (.tif) or a picture (.png).

    Parameters
    ----------
    out
        Root of an output, finished or not; what is missing is nodata.
    dest
        The file to make; missing directories are made.
    max_side_px
        Longest side of a picture, px, at least 400.
    scene
        The scene below the labels of a picture. None, or a scene that cannot be read: labels only.
    opacity
        How much of the scene the labels hide, 0 to 1.
    overwrite
        Whether an existing file may be replaced.
    on_progress
        Called with (windows done, windows in all).

    Raises
    ------
    SpecError
        The ending of ``dest`` is not known, or a number is out of range.
    StoreError
        ``out`` is no output, ``dest`` exists, or it cannot be written.
    """
    picture = _PictureSpec(max_side_px=max_side_px, scene=scene, opacity=opacity)
    _check_dest(dest, overwrite=overwrite)
    layout = open_layout(out)
    with _workspace(dest) as partial:
        if dest.suffix.lower() in _GEOTIFF:
            tally = _Tally(n_label_windows(layout), on_progress)
            write_label_cog(out, layout, partial, on_window=tally.add)
            warnings: tuple[str, ...] = ()
        else:
            tally, warnings = _write_picture(out, layout, partial, picture, on_progress)
        publish(partial, dest)
    return _summarise(dest, layout, tally, warnings)


def _check_dest(dest: Path, *, overwrite: bool) -> None:
    if dest.suffix.lower() not in (*_GEOTIFF, *_PICTURE):
        raise SpecError(f"{dest} ends in {dest.suffix or 'nothing'!r}; .tif and .png are supported, choose one of them")
    if dest.is_dir():
        raise StoreError(f"{dest} is a directory; give the path of a file")
    if dest.exists() and not overwrite:
        raise StoreError(f"{dest} exists already; choose another path, or allow replacing it (--overwrite)")


@contextmanager
def _workspace(dest: Path) -> Iterator[Path]:
    """Give a path for the unfinished file on the disk of ``dest``; nothing is left of it in the end."""
    workspace = name_partial(dest)
    try:
        make_directory_durably(dest.parent)
        workspace.mkdir()
        yield workspace / dest.name
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"cannot write {dest}: {reason}; check the path, its permissions and the free space") from error
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _write_picture(
    out: Path, layout: StoreLayout, target: Path, spec: _PictureSpec, on_progress: Progress | None
) -> tuple[_Tally, tuple[str, ...]]:
    shape = layout.height, layout.width
    n_panels = 1 if spec.scene is None else 2
    factor = choose_factor(shape, max_side_px=spec.max_side_px, n_panels=n_panels)
    tally = _Tally(sum(1 for _ in cell_windows(shape, factor)), on_progress)
    labels = _decimate_labels(out, shape, factor, tally)
    background, warnings = _read_background(spec.scene, shape, factor)
    metres = layout.georef.pixel_size_m
    picture = Picture(
        labels=labels,
        background=background,
        classes=layout.classes,
        counts=tally.counts,
        unit_px=factor * (metres or 1.0),
        unit="px" if metres is None else "m",
        title=out.name,
        subtitle=_describe(layout, metres),
        opacity=spec.opacity,
    )
    render(picture, max_side_px=spec.max_side_px).save(target, format="PNG")
    return tally, warnings


def _describe(layout: StoreLayout, metres: float | None) -> str:
    parts = [f"{layout.width:,} x {layout.height:,} px"]
    if metres is not None:
        parts.append(f"{metres:.3g} m per px")
    if layout.georef.epsg is not None:
        parts.append(f"EPSG:{layout.georef.epsg}")
    return "   ".join(parts)


def _decimate_labels(out: Path, shape: tuple[int, int], factor: int, tally: _Tally) -> NDArray[np.uint8]:
    size = decimated_size(shape[0], factor), decimated_size(shape[1], factor)
    result = np.full(size, NODATA_LABEL, np.uint8)
    for window in cell_windows(shape, factor):
        labels = read_labels(out, window)
        result[decimate_window(window, factor).to_slices()] = majority(labels, factor)
        tally.add(labels)
    return result


def _read_background(
    spec: SceneSpec | None, shape: tuple[int, int], factor: int
) -> tuple[NDArray[np.uint8] | None, tuple[str, ...]]:
    """Return the decimated scene, (height, width, 4) u1, or None with the reason."""
    if spec is None:
        return None, ()
    try:
        with open_scene(spec) as scene:
            _check_shape(spec, scene.info.shape, shape)
            return _decimate_scene(scene, factor), ()
    except SourceError as error:
        _log.warning("picture without the scene: %s", error)
        return None, (f"the picture shows no scene: {error}",)


def _check_shape(spec: SceneSpec, given: tuple[int, int], expected: tuple[int, int]) -> None:
    if given != expected:
        raise SourceError(
            f"{spec.uri} has {given[0]} x {given[1]} px and the output {expected[0]} x {expected[1]}; "
            "give the scene that was segmented"
        )


def _decimate_scene(scene: Scene, factor: int) -> NDArray[np.uint8]:
    """Return the first three bands (or the first one as grey) and alpha, (height, width, 4) u1."""
    shape = scene.info.shape
    stretch = estimate_stretch(scene)
    size = decimated_size(shape[0], factor), decimated_size(shape[1], factor)
    n_bands = 3 if len(scene.bands) >= 3 else 1
    result = np.zeros((*size, 4), np.uint8)
    for window in cell_windows(shape, factor):
        tile = scene.read(window)
        pixels, valid = mean(stretch.apply(tile.pixels)[:n_bands], tile.valid, factor)
        cells = result[decimate_window(window, factor).to_slices()]
        cells[..., :3] = np.rint(pixels).astype(np.uint8).transpose(1, 2, 0)
        cells[..., 3] = np.where(valid, 255, 0)
    return result


def _summarise(dest: Path, layout: StoreLayout, tally: _Tally, warnings: tuple[str, ...]) -> ExportSummary:
    return ExportSummary(
        dest=dest,
        n_bytes=dest.stat().st_size,
        n_pixels={one.name: int(tally.counts[i]) for i, one in enumerate(layout.classes)},
        n_nodata=int(tally.counts[NODATA_LABEL]),
        warnings=warnings,
    )
