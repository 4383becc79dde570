"""What does training read? Windows of scenes with the class of each pixel, on demand, never a whole scene.

::

    image --the reader and the stretch of `atrous segment`--> pixels (bands, h, w) float32, units of the model
    labels, raster or polygons, on the grid of the image  --> labels (h, w) uint8, 255 = ignored

Small files that only decode whole, such as PNG, are decoded once and kept (`workflows.memory_scene`); the rest stays on disk.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline.errors import SourceError, SpecError
from pipeline.normalise import to_input
from pipeline.scene import SceneSpec, open_scene
from pipeline.stretch import estimate_stretch
from pipeline.window import Window
from workflows.label_source import open_labels
from workflows.label_spec import IGNORED, LabelPlace, LabelSpec
from workflows.memory_scene import MemoryAllowance
from workflows.mosaic import MosaicLabels, MosaicScene

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from pipeline.georef import Georef
    from pipeline.scene import Scene
    from workflows.label_source import LabelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneEntry(LabelPlace):
    """One scene of the data: an image and its labels, whole or in parts."""

    image: Path
    """Raster, or a glob of its parts; parts are sorted by name."""
    label: Path
    """Labels of the same pixels: a raster, an output of `atrous segment`, polygons, or a glob that sorts in the same order."""
    name: str = ""
    """What reports call it; by default the image's path."""
    mosaic: tuple[int, int] | None = None
    """(rows, columns) of the parts in row order; None: every file is a scene of its own."""
    bands: tuple[int, ...] | None = None
    """Bands of the image, counted from 1, in the order of the model's; None: all."""
    nodata: float | None = None
    """Value of the image that means "no data", in place of what the file says."""
    label_nodata: int | None = None
    """Number in a label raster that means "no label", in place of 255 and of what the file says."""

    def __post_init__(self) -> None:
        if self.mosaic is not None and (len(self.mosaic) != 2 or min(self.mosaic) < 1):
            raise SpecError(f"mosaic of {self.name or self.image} is {list(self.mosaic)}; give [rows, columns], each at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """What the pixels and labels of all scenes mean."""

    classes: tuple[str, ...]
    """Names of class 0, 1, ...."""
    colors: tuple[str, ...] | None = None
    """``#rrggbb`` of the classes in label rasters; None: they hold numbers."""
    ignored_colors: tuple[str, ...] = ()
    """``#rrggbb`` in label rasters of pixels without a label."""
    values: tuple[tuple[str, str], ...] = ()
    """(value in labels, class name or ``ignore``), as in `LabelSpec.values`."""
    bands: tuple[str, ...]
    """Names of the bands of the model."""
    input_range: tuple[float, float] = (0.0, 255.0)
    """Lowest and highest value that the network sees."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingWindow:
    """The pixels of a window and what they are."""

    pixels: NDArray[np.float32]
    """(bands, height, width), units of the model; beyond the scene its edge is repeated."""
    labels: NDArray[np.uint8]
    """(height, width), class ids; 255: no label, no data, beyond the scene."""
    valid: NDArray[np.bool_]
    """(height, width), False where the image has no data; beyond the scene as at its edge."""


class TrainingScene:
    """An image and its labels, open. For one thread."""

    def __init__(self, name: str, image: Scene, labels: LabelSource, *, input_range: tuple[float, float]) -> None:
        assert image.info.shape == labels.shape
        self.name = name
        self._image, self._labels, self._input_range = image, labels, input_range
        self._stretch = estimate_stretch(image)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self._image.info.shape

    @property
    def n_bands(self) -> int:
        """Bands of a window."""
        return len(self._image.bands)

    @property
    def georef(self) -> Georef:
        """Where the scene lies."""
        return self._image.info.georef

    def read(self, window: Window) -> TrainingWindow:
        """Read a window, which may reach beyond the scene; SourceError where a file is damaged or a label means nothing."""
        rows = np.clip(np.arange(window.row_off, window.row_end), 0, self.shape[0] - 1)
        cols = np.clip(np.arange(window.col_off, window.col_end), 0, self.shape[1] - 1)
        inner = Window.from_bounds(rows=(int(rows[0]), int(rows[-1]) + 1), cols=(int(cols[0]), int(cols[-1]) + 1))
        tile = self._image.read(inner)
        labels = self._labels.read(inner)
        labels[~tile.valid] = IGNORED
        pixels = to_input(tile.pixels, stretch=self._stretch, input_range=self._input_range)
        if inner == window:
            return TrainingWindow(pixels=pixels, labels=labels, valid=tile.valid)
        at = (rows - inner.row_off)[:, np.newaxis], cols - inner.col_off
        around = labels[at]
        around[_beyond(window, self.shape)] = IGNORED
        return TrainingWindow(pixels=np.ascontiguousarray(pixels[:, at[0], at[1]]), labels=around, valid=tile.valid[at])

    def read_labels(self, window: Window) -> NDArray[np.uint8]:
        """Return (height, width) class ids of a window inside the scene, 255 where there is no label or no data."""
        labels = self._labels.read(window)
        if self._image.info.mask_kind != "none":
            labels[~self._image.read(window).valid] = IGNORED
        return labels

    def close(self) -> None:
        """Give back what is open."""
        self._image.close()
        self._labels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    """What opening needs to know, and where it leaves what it opened."""

    data: DataSpec
    allowance: MemoryAllowance
    stack: ExitStack = field(default_factory=ExitStack)


def open_training_scenes(
    entries: Sequence[SceneEntry], data: DataSpec, *, allowance: MemoryAllowance | None = None
) -> tuple[TrainingScene, ...]:
    """Open the scenes of ``entries``; without ``mosaic`` every file that a glob finds is one.

    Parameters
    ----------
    entries
        The files.
    data
        What pixels and labels mean.
    allowance
        How much may be kept in memory; give the same one to several calls. None: `workflows.memory_scene.MOST_BYTES_IN_ALL`.

    Raises
    ------
    SourceError
        A file is missing or damaged, or image, labels and settings do not fit together.
    """
    opening = _Opening(data=data, allowance=allowance or MemoryAllowance())
    with opening.stack:
        scenes = tuple(scene for entry in entries for scene in _open_entry(entry, opening))
        opening.stack.pop_all()
    return scenes


def _open_entry(entry: SceneEntry, opening: _Opening) -> list[TrainingScene]:
    images, labels = _find(entry.image), _find(entry.label)
    if entry.mosaic is not None and len(images) != entry.mosaic[0] * entry.mosaic[1]:
        rows, columns = entry.mosaic
        raise SourceError(
            f"{entry.image} finds {len(images)} files and a mosaic of {rows} x {columns} needs {rows * columns}; correct either"
        )
    shared = len(labels) == 1 and (entry.mosaic is not None or _label_spec(entry, labels[0], opening.data).is_polygons)
    if len(images) != len(labels) and not shared:
        raise SourceError(
            f"{entry.image} finds {len(images)} files and {entry.label} finds {len(labels)}; they are paired in order of their names, so "
            "the numbers must agree (one file of polygons may serve all)"
        )
    name = entry.name or str(entry.image)
    if entry.mosaic is not None:
        return [_open_mosaic(name, entry, images, labels, opening)]
    if shared:
        labels *= len(images)
    names = [name if len(images) == 1 else f"{name}/{image.name}" for image in images]
    return [_open_one(one, entry, pair, opening) for one, pair in zip(names, zip(images, labels, strict=True), strict=True)]


def _find(pattern: Path) -> list[Path]:
    """Return the file of that name, or those that a glob finds, sorted."""
    if pattern.exists():
        return [pattern]
    found = sorted(Path(name) for name in glob(str(pattern)))  # noqa: PTH207 - the pattern may be absolute
    if not found:
        raise SourceError(f"{pattern} names no file; correct the path or the glob in the training configuration")
    return found


def _open_one(name: str, entry: SceneEntry, pair: tuple[Path, Path], opening: _Opening) -> TrainingScene:
    image = _open_image(name, entry, pair[0], opening)
    labels = _open_labels(entry, pair[1], image, opening)
    return TrainingScene(name, image, labels, input_range=opening.data.input_range)


def _open_mosaic(name: str, entry: SceneEntry, images: list[Path], labels: list[Path], opening: _Opening) -> TrainingScene:
    assert entry.mosaic is not None
    parts = [_open_image(name, entry, path, opening) for path in images]
    image = MosaicScene(parts, mosaic=entry.mosaic, name=name)
    source: LabelSource
    if len(labels) == 1:
        source = _open_labels(entry, labels[0], image, opening)
    else:
        sources = [_open_labels(entry, path, part, opening) for path, part in zip(labels, parts, strict=True)]
        source = MosaicLabels(sources, image.places)
    return TrainingScene(name, image, source, input_range=opening.data.input_range)


def _open_image(name: str, entry: SceneEntry, path: Path, opening: _Opening) -> Scene:
    wanted, names = SceneSpec(uri=str(path), bands=entry.bands, nodata=entry.nodata), opening.data.bands
    opened = open_scene(wanted)
    if len(opened.bands) != len(names):
        opened.close()
        raise SourceError(
            f"{name} has {len(opened.bands)} bands and the configuration names {len(names)} ({', '.join(names)}); correct bands, choose "
            "some of the image's with bands in its entry, or correct the image"
        )
    return opening.stack.enter_context(opening.allowance.keep(opened, lambda: open_scene(wanted)))


def _open_labels(entry: SceneEntry, path: Path, image: Scene, opening: _Opening) -> LabelSource:
    spec = _label_spec(entry, path, opening.data)
    info = image.info
    return opening.stack.enter_context(open_labels(spec, shape=info.shape, georef=info.georef, allowance=opening.allowance))


def _label_spec(entry: SceneEntry, path: Path, data: DataSpec) -> LabelSpec:
    return LabelSpec(
        path=path,
        classes=data.classes,
        colors=data.colors,
        ignored_colors=data.ignored_colors,
        values=data.values,
        nodata=entry.label_nodata,
        **{one.name: getattr(entry, one.name) for one in fields(LabelPlace)},
    )


def _beyond(window: Window, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return (height, width) bool: which pixels of a window lie beyond the scene."""
    beyond = np.ones(window.shape, np.bool_)
    inside = window.clip(shape)
    if inside is not None:
        beyond[inside.relative_to(window).to_slices()] = False
    return beyond
