"""Which pixels does a polygon cover? The polygons of a file in pixels of the scene, burnt in window by window. The only door to geopandas.

::

    file -> geometries -> the scene's CRS -> (column, row) of the scene -> spatial index
                                                 window -> those that touch it, in order of the file, later over earlier -> class ids

Polygons without a CRS, or for a scene without one, are in the scene's own coordinates: those of its transform, or pixels (x to the right, y
down) where it has none. GeoJSON is longitude and latitude by its standard (RFC 7946), so it is brought to the CRS of the scene unasked; it
says nothing to a scene without CRS.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from affine import Affine
from rasterio.features import rasterize

from pipeline.errors import MissingDependencyError, SourceError, SpecError
from pipeline.gdal_scene import gdal_environment
from pipeline.georef import Georef, wkt_of_code
from pipeline.scene_info import check_regular, local_path
from workflows.label_spec import IGNORE
from workflows.label_warp import name_crs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from pipeline.window import Window
    from workflows.label_spec import LabelSpec

Placement = Literal["same", "transform"]

_DEFAULT_ATTRIBUTE = "class"
_GEOJSON = (".geojson", ".json")
_PARQUET = (".parquet", ".geoparquet")
_STARTS = {".gpkg": b"SQLite format 3\x00", ".shp": b"\x00\x00\x27\x0a", ".parquet": b"PAR1", ".geoparquet": b"PAR1"}
_GEOPACKAGE_IDS = (b"GPKG", b"GP10", b"GP11")
_LONG = 2000
"""Vertices from which on a polygon is clipped to the window before it is burnt in."""
_SHOWN = 10
_PROBES = 32
_HALF_TURN_DEG = 180


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolygonFile:
    """The polygons of a file, wherever they lie."""

    polygons: Any
    """GeoSeries, in the CRS of the file."""
    ids: NDArray[np.uint8]
    """(n,) class ids, 255 where a polygon says that there is no label."""


class PolygonLabels:
    """Polygons that are burnt in where they are read."""

    def __init__(self, polygons: Any, ids: NDArray[np.uint8], spec: LabelSpec, *, shape: tuple[int, int]) -> None:
        """Hold ``polygons``, a GeoSeries in (column, row) of a scene of ``shape``, of the classes ``ids``."""
        self._shape, self._ids = shape, ids
        self._outside, self._all_touched = spec.id_of(spec.outside), spec.all_touched
        self._index, self._polygons = polygons.sindex, polygons.to_numpy()
        self._long = polygons.count_coordinates().to_numpy() > _LONG

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the scene."""
        return self._shape

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return (height, width) class ids of a window inside the scene, 255: no label."""
        import shapely  # noqa: PLC0415 - an optional library

        bounds = window.col_off, window.row_off, window.col_end, window.row_end
        found = self._index.query(shapely.box(*bounds), sort=True)
        around = window.grow(8)
        sides = around.col_off, around.row_off, around.col_end, around.row_end
        parts = [shapely.clip_by_rect(self._polygons[i], *sides) if self._long[i] else self._polygons[i] for i in found]
        shapes = [(part, int(self._ids[i])) for part, i in zip(parts, found, strict=True) if not part.is_empty]
        if not shapes:
            return np.full(window.shape, self._outside, np.uint8)
        with gdal_environment():
            labels: NDArray[np.uint8] = rasterize(
                shapes,
                out_shape=window.shape,
                fill=self._outside,
                transform=Affine.translation(window.col_off, window.row_off),
                all_touched=self._all_touched,
                dtype="uint8",
            )
        return labels

    def close(self) -> None:
        """Do nothing: the file is closed already."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_polygons(spec: LabelSpec) -> PolygonFile:
    """Read a file with polygons.

    Raises
    ------
    SourceError
        The file cannot be read, holds other things than polygons, has no such layer or attribute, or an attribute's value is no class.
    MissingDependencyError
        geopandas or, for GeoParquet, pyarrow is not installed.
    """
    _require("geopandas")
    frame = _read(spec)
    ids = _ids(frame, spec)
    _check_kinds(frame, spec)
    return PolygonFile(polygons=frame.geometry, ids=ids)


def place_polygons(file: PolygonFile, spec: LabelSpec, *, shape: tuple[int, int], georef: Georef) -> PolygonLabels:
    """Return the polygons that touch a scene of ``shape`` and ``georef``.

    Raises
    ------
    SourceError
        The CRS of the file is another one (and ``reproject`` is not set), or no polygon touches the scene.
    """
    placement = _placement(file.polygons, spec, georef)
    near = _near(file.polygons, placement, shape=shape, georef=georef)
    placed = _to_pixels(file.polygons.iloc[near], placement, georef)
    there = _touching(placed, shape)
    if not there.any():
        raise SourceError(_explain_outside(_to_pixels(file.polygons, placement, georef), spec, shape))
    return PolygonLabels(placed[there].reset_index(drop=True), file.ids[near][there], spec, shape=shape)


def _require(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise MissingDependencyError(
            f"labels in polygons need {library}, which is not installed; install it with pip install 'atrous[polygons]'"
        )


def _read(spec: LabelSpec) -> Any:
    """Return the file as a GeoDataFrame with polygons only where there are any geometries."""
    import geopandas  # noqa: PLC0415 - an optional library

    path = local_path(str(spec.path)).absolute()
    _check_start(path)
    suffix = path.suffix.lower()
    try:
        if suffix in _PARQUET:
            _require("pyarrow")
            frame = geopandas.read_parquet(path)
        else:
            frame = geopandas.read_file(path, layer=_layer(spec, geopandas.list_layers(path)["name"].tolist()))
    except SourceError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise SourceError(
            f"{spec.path} cannot be read as polygons ({error}); copy it again, or convert it to GeoPackage"
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame) or frame.active_geometry_name is None:
        raise SourceError(f"{spec.path} has no geometries; polygons are expected: give the layer that has them")
    return frame[~(frame.geometry.isna() | frame.geometry.is_empty)].reset_index(drop=True)


def _check_start(path: Path) -> None:
    """Refuse files that are not what their name says: the reader goes by the content, and some formats name other files."""
    if not path.exists():
        raise SourceError(f"{path} does not exist; give the path of a raster or of polygons")
    check_regular(path)
    if path.is_dir():
        raise SourceError(f"{path} is a folder; give a file with polygons, or rename it if it is a Zarr directory")
    with path.open("rb") as file:
        head = file.read(4096)
    suffix = path.suffix.lower()
    expected = _STARTS.get(suffix)
    fits = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") if expected is None else head.startswith(expected)
    if not fits or (suffix == ".gpkg" and head[68:72] not in _GEOPACKAGE_IDS):
        raise SourceError(
            f"{path} does not begin as a {suffix} file does; it is damaged or another format: convert it with ogr2ogr"
        )


def _layer(spec: LabelSpec, layers: list[str]) -> str:
    if spec.layer is not None and spec.layer in layers:
        return spec.layer
    if spec.layer is None and len(layers) == 1:
        return layers[0]
    asked = "no layer was named" if spec.layer is None else f"the layer {spec.layer!r} was named"
    raise SourceError(
        f"{spec.path} has the layers {', '.join(map(repr, layers)) or '(none)'}, and {asked}; set layer to one of them"
    )


def _check_kinds(frame: Any, spec: LabelSpec) -> None:
    kinds = Counter(frame.geom_type)
    others = {kind: n for kind, n in kinds.items() if kind not in ("Polygon", "MultiPolygon")}
    if others or not kinds:
        found = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "nothing"
        raise SourceError(
            f"{spec.path} holds {found}; polygons are expected: buffer lines and points in a GIS, or name another layer"
        )


def _ids(frame: Any, spec: LabelSpec) -> NDArray[np.uint8]:
    """Return the class id of each polygon, 255 where it says that there is no label."""
    column = _attribute(frame, spec)
    if column is None:
        only = next(name for name in spec.classes if name != spec.outside)
        return np.full(len(frame), spec.id_of(only), np.uint8)
    missing = frame[column].isna()
    texts = ["" if gone else _text(value) for gone, value in zip(missing, frame[column], strict=True)]
    table = _table(spec)
    unknown = Counter(text for text in texts if text not in table)
    if unknown:
        named = ", ".join(f"{text!r} ({n})" for text, n in unknown.most_common(_SHOWN))
        raise SourceError(
            f"the attribute {column!r} of {spec.path} has values that are no class: {named}; known are "
            f"{', '.join(map(repr, list(table)[: 2 * _SHOWN]))}: list them in values, as a class or {IGNORE!r}"
        )
    return np.array([table[text] for text in texts], np.uint8)


def _attribute(frame: Any, spec: LabelSpec) -> str | None:
    """Return the column with the class; None where there is nothing to choose."""
    columns = [str(name) for name in frame.columns if name != frame.geometry.name]
    column = _DEFAULT_ATTRIBUTE if spec.attribute is None else spec.attribute
    if column in columns:
        return column
    if spec.attribute is None and len(set(spec.classes) - {spec.outside}) == 1:
        return None
    asked = "no attribute was named" if spec.attribute is None else f"the attribute {spec.attribute!r} was named"
    raise SourceError(
        f"{spec.path} has the attributes {', '.join(map(repr, columns)) or '(none)'}, and {asked}; set attribute to the one with the class"
    )


def _table(spec: LabelSpec) -> dict[str, int]:
    if spec.pairs:
        return {value: spec.id_of(name) for value, name in spec.pairs}
    return {str(index): index for index in range(len(spec.classes))} | {name: spec.id_of(name) for name in spec.classes}


def _text(value: Any) -> str:
    """Return an attribute's value as people write it: whole numbers without a point."""
    return str(int(value)) if isinstance(value, float | np.floating) and value == int(value) else str(value)


def _placement(polygons: Any, spec: LabelSpec, georef: Georef) -> Placement:
    """Return how coordinates of the file become those of the scene."""
    theirs = _crs_of(polygons, spec)
    if theirs.crs_wkt is None and georef.crs_wkt is None:
        return "same"
    is_geojson = spec.path.suffix.lower() in _GEOJSON and theirs.epsg == 4326
    if theirs.crs_wkt is None or georef.crs_wkt is None:
        if spec.reproject or (is_geojson and georef.crs_wkt is None):
            return "same"
        raise SourceError(
            f"{spec.path} has {name_crs(theirs)}, and the scene {name_crs(georef)}; give the file without one its CRS, or set reproject if "
            "their coordinates are the same"
        )
    if _is_same(polygons.crs, georef):
        return "same"
    if not (spec.reproject or is_geojson):
        raise SourceError(
            f"{spec.path} has {name_crs(theirs)}, and the scene {name_crs(georef)}; set reproject to bring the polygons to the scene, or "
            "correct the pairing"
        )
    return "transform"


def _crs_of(polygons: Any, spec: LabelSpec) -> Georef:
    """Return the CRS of a file; GeoPackage calls one that it does not know undefined."""
    if polygons.crs is None or "undefined" in polygons.crs.name.lower() or polygons.crs.is_engineering:
        return Georef()
    try:
        return Georef(crs_wkt=wkt_of_code(polygons.crs.to_wkt()))
    except SpecError as error:
        raise SourceError(
            f"{spec.path} has a CRS that is not understood ({error}); give it another one with ogr2ogr -a_srs"
        ) from error


def _is_same(crs: Any, georef: Georef) -> bool:
    return crs.equals(georef.crs_wkt, ignore_axis_order=True) or (georef.epsg is not None and crs.to_epsg() == georef.epsg)


def _near(polygons: Any, placement: Placement, *, shape: tuple[int, int], georef: Georef) -> NDArray[np.intp]:
    """Return the numbers, rising, of the polygons that may touch the scene; all of them where its bounds are not known in their CRS."""
    import geopandas  # noqa: PLC0415 - an optional library
    import shapely  # noqa: PLC0415 - an optional library

    scene = shapely.segmentize(shapely.box(0, 0, shape[1], shape[0]), max(shape) / _PROBES)
    scene = shapely.transform(scene, _from_pixel(georef))
    if placement == "transform":
        scene = geopandas.GeoSeries([scene], crs=georef.crs_wkt).to_crs(polygons.crs).iloc[0]
    left, bottom, right, top = shapely.bounds(scene)
    width, height = right - left, top - bottom
    turns_around = placement == "transform" and polygons.crs.is_geographic and width > _HALF_TURN_DEG
    if not np.isfinite((width, height)).all() or turns_around:
        return np.arange(len(polygons))
    sides = left - width / 8, bottom - height / 8, right + width / 8, top + height / 8
    return np.asarray(polygons.sindex.query(shapely.box(*sides), sort=True), np.intp)


def _to_pixels(polygons: Any, placement: Placement, georef: Georef) -> Any:
    """Return polygons in (column, row) of the scene, without a CRS."""
    import geopandas  # noqa: PLC0415 - an optional library
    import shapely  # noqa: PLC0415 - an optional library

    moved = polygons.to_crs(georef.crs_wkt) if placement == "transform" else polygons
    return geopandas.GeoSeries(shapely.transform(moved.to_numpy(), _to_pixel(georef)))


def _from_pixel(georef: Georef) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return _affine(None if georef.transform is None else Affine(*georef.transform))


def _to_pixel(georef: Georef) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return _affine(None if georef.transform is None else ~Affine(*georef.transform))


def _affine(by: Affine | None) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return what moves points (n, 2)."""
    if by is None:
        return lambda points: points
    matrix = np.array([[by.a, by.d], [by.b, by.e]])
    return lambda points: points @ matrix + (by.c, by.f)


def _touching(polygons: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Tell which polygons have a bounding rectangle that reaches into the scene."""
    bounds = polygons.bounds.to_numpy()
    found: NDArray[np.bool_] = (bounds[:, 0] < shape[1]) & (bounds[:, 1] < shape[0]) & (bounds[:, 2] > 0) & (bounds[:, 3] > 0)
    found &= np.isfinite(bounds).all(axis=1)
    return found


def _explain_outside(polygons: Any, spec: LabelSpec, shape: tuple[int, int]) -> str:
    left, top, right, bottom = polygons.total_bounds
    return (
        f"none of the {len(polygons)} polygons of {spec.path} touches the scene: they span columns {left:.0f} to {right:.0f} and rows "
        f"{top:.0f} to {bottom:.0f}, and it has columns 0 to {shape[1]} and rows 0 to {shape[0]}; correct the pairing or the CRS"
    )
