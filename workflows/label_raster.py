"""How does a raster say what class a pixel is? By ids, numbers with a meaning, or colours, looked up window by window.

::

    number, palette index -> [table of 256]     -> class id, 255 = no label, or an error that counts what has no meaning
    wide numbers, colours -> [sorted values]    ->
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.errors import SourceError, SpecError
from pipeline.gdal_scene import GdalScene
from pipeline.scene import SceneSpec, open_scene
from pipeline.store import is_store, open_layout
from workflows.label_spec import IGNORE, IGNORED, rgb_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from numpy.typing import NDArray

    from pipeline.scene import Scene, SceneInfo
    from pipeline.window import Window
    from workflows.label_spec import LabelSpec
    from workflows.open_files import OpenFiles

_UNKNOWN = -1
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recoding:
    """Which value of a raster is which class."""

    values: NDArray[Any]
    """(n,) rising: numbers, or colours as ``0xrrggbb``."""
    ids: NDArray[np.int16]
    """(n,) class ids, 255 where the value means "no label"."""
    palette: NDArray[np.uint32] | None = None
    """(n,) the colours that the numbers in the raster stand for; None: the numbers count, or the bands are colours."""
    is_colored: bool = False
    """Whether values are colours."""

    def apply(self, pixels: NDArray[Any]) -> NDArray[np.int16]:
        """Return (height, width) class ids of (bands, height, width) pixels, -1 where a value has no meaning."""
        values = self.packed(pixels)
        if self.palette is None and values.dtype == np.uint8:
            table: NDArray[np.int16] = self._look_up(np.arange(256))[values]
            return table
        return self._look_up(values)

    def packed(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return (height, width) values: the only band, or three colours in one number."""
        values: NDArray[Any] = pixels[0]
        if self.palette is not None:
            values = self.palette[np.minimum(values, len(self.palette) - 1)]
        elif self.is_colored:
            red, green, blue = pixels.astype(np.uint32)
            values = (red << 16) | (green << 8) | blue
        return values

    def write(self, value: Any) -> str:
        """Return a value as people write it."""
        return f"#{int(value):06x}" if self.is_colored else str(int(value)) if value == int(value) else f"{value:g}"

    def _look_up(self, values: NDArray[Any]) -> NDArray[np.int16]:
        at = np.minimum(np.searchsorted(self.values, values), len(self.values) - 1)
        ids = np.where(self.values[at] == values, self.ids[at], np.int16(_UNKNOWN))
        if values.dtype.kind == "f":
            ids[np.isnan(values)] = IGNORED
        return ids


class RasterLabels:
    """Labels in a raster on the grid of the scene, or on its own one."""

    def __init__(self, scene: Scene, recoding: Recoding, name: str, *, reopen: Callable[[], Scene]) -> None:
        self._scene, self._recoding, self._name, self._reopen = scene, recoding, name, reopen

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the raster."""
        return self._scene.info.shape

    @property
    def info(self) -> SceneInfo:
        """What the raster's header says."""
        return self._scene.info

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return (height, width) class ids of a window inside the raster, 255: no label; SourceError where a value has no meaning."""
        tile = self._scene.read(window)
        ids = self._recoding.apply(tile.pixels)
        ids[~tile.valid] = IGNORED
        if (ids == _UNKNOWN).any():
            raise SourceError(self._explain(self._recoding.packed(tile.pixels)[ids == _UNKNOWN], window))
        return ids.astype(np.uint8)

    def among(self, files: OpenFiles) -> RasterLabels:
        """Return the labels with their file among those that may be closed and opened again."""
        return RasterLabels(files.share(self._scene, self._reopen), self._recoding, self._name, reopen=self._reopen)

    def close(self) -> None:
        """Give back the file handle."""
        self._scene.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _explain(self, unknown: NDArray[Any], window: Window) -> str:
        found, counts = np.unique(unknown, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_SHOWN]
        named = ", ".join(f"{self._recoding.write(found[i].item())} ({counts[i]} px)" for i in order)
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        known = ", ".join(self._recoding.write(value.item()) for value in self._recoding.values[:_SHOWN])
        kind = "colours" if self._recoding.is_colored else "labels"
        lossy = "; JPEG changes colours, so labels need PNG or TIFF" if self._scene.info.driver == "JPEG" else ""
        return (
            f"{self._name} has {kind} that are neither a class nor ignored: {named}{more} in rows {window.row_off} to "
            f"{window.row_end - 1}; known: {known}; add a class, or list them in values (as a class or {IGNORE!r}) or ignored_colors{lossy}"
        )


def open_raster(spec: LabelSpec) -> RasterLabels:
    """Open the raster of ``spec``, whatever its grid; raises SourceError or SpecError."""
    path, stored = spec.path, is_store(spec.path)
    place = path / "0" / "labels" if stored else path
    wanted = SceneSpec(uri=str(place), nodata=None if stored else spec.nodata)
    scene = open_scene(wanted, indices=True)
    try:
        recoding = _recoding(spec, scene, names=tuple(one.name for one in open_layout(path).classes) if stored else ())
    except BaseException:
        scene.close()
        raise
    return RasterLabels(scene, recoding, str(path), reopen=lambda: open_scene(wanted, indices=True))


def _recoding(spec: LabelSpec, scene: Scene, *, names: tuple[str, ...]) -> Recoding:
    if names:
        return _of_pairs(_stored_pairs(spec, names), dtype="uint8")
    palette = scene.palette if isinstance(scene, GdalScene) else None
    if not spec.is_colored:
        _check_one_band(spec, scene)
        return _of_pairs(_number_pairs(spec), dtype=scene.info.dtype)
    if palette is None and scene.info.n_bands != 3:
        raise SourceError(
            f"{spec.path} has {scene.info.n_bands} bands and no palette; label colours need red, green and blue: give no colours if it "
            'holds class ids (labels = "ids" in a training), or convert it'
        )
    colours = [
        *zip(spec.colors or (), spec.classes, strict=bool(spec.colors)),
        *((color, IGNORE) for color in spec.ignored_colors),
    ]
    table = {_pack(color): spec.id_of(name) for color, name in (*colours, *spec.pairs)}
    shown = None if palette is None else np.array([red << 16 | green << 8 | blue for red, green, blue in palette], np.uint32)
    return _sorted(table, palette=shown, is_colored=True, dtype="uint32")


def _of_pairs(pairs: dict[float, int], *, dtype: str) -> Recoding:
    return _sorted(pairs, dtype=dtype if np.dtype(dtype).kind == "f" else "float64")  # float64 holds all integers of 32 bits


def _sorted(
    table: dict[Any, int], *, dtype: str, palette: NDArray[np.uint32] | None = None, is_colored: bool = False
) -> Recoding:
    values = sorted(table)
    ids = np.array([table[value] for value in values], np.int16)
    return Recoding(values=np.array(values, dtype), ids=ids, palette=palette, is_colored=is_colored)


def _check_one_band(spec: LabelSpec, scene: Scene) -> None:
    if scene.info.n_bands != 1:
        raise SourceError(
            f'{spec.path} has {scene.info.n_bands} bands; class ids need 1: set labels = "colors" if it is coloured, or extract one band'
        )


def _number_pairs(spec: LabelSpec) -> dict[float, int]:
    """Return id by number; 255 means "no label" unless something else is said of it."""
    ignored: dict[float, int] = {} if spec.nodata is not None else {IGNORED: IGNORED}
    if not spec.pairs:
        return {**ignored, **{index: index for index in range(len(spec.classes))}}
    return ignored | {_number(spec, value): spec.id_of(name) for value, name in spec.pairs}


def _number(spec: LabelSpec, value: str) -> float:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        raise SpecError(
            f"values has {value!r} for {spec.path}, a raster; a number, or a colour as #rrggbb, is expected; names belong to polygons"
        ) from None


def _stored_pairs(spec: LabelSpec, names: tuple[str, ...]) -> dict[float, int]:
    """Return id by stored id of an output of ours, which knows the names of its classes."""
    meant = dict(spec.pairs) if spec.pairs else {name: name for name in spec.classes}
    found = {index: meant[key] for index, name in enumerate(names) for key in (str(index), name) if key in meant}
    if not found:
        raise SourceError(
            f"{spec.path} has the classes {', '.join(names)}; {', '.join(spec.classes)} are expected; say which is which in values"
        )
    return {IGNORED: IGNORED, **{index: spec.id_of(name) for index, name in found.items()}}


def _pack(color: str) -> int:
    red, green, blue = rgb_of(color)
    return red << 16 | green << 8 | blue
