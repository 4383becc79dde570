"""How are Zarr scenes read? One 2-D or 3-D array of a local store, version 2 or 3.

1. Find the array: the path itself, the ``0`` level of a group, or the only 2-D or 3-D array of a group.
2. Find its axes: by dimension names where there are any; otherwise the smaller of the first and the last axis
   is the band.
3. Find nodata: the attribute ``nodata``, then ``_FillValue``. The array's ``fill_value`` is not taken for it:
   it is 0 by default in every store, where 0 is a colour.
4. Find the place: ``proj:code`` or ``proj:wkt2`` and ``spatial:transform``, then the CF grid mapping and the
   x and y coordinates.
"""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import zarr

from pipeline.errors import PipelineError, SourceError, SpecError
from pipeline.georef import Georef, wkt_of_code
from pipeline.scene_info import (
    SceneInfo,
    SceneSpec,
    Tile,
    check_bands,
    check_block_bytes,
    check_dtype,
    check_inside,
    check_size,
    where_valid,
)
from pipeline.zarr_guard import InsideStore, check_codecs, is_plain_name

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from pipeline.window import Window

Order = Literal["yx", "byx", "yxb"]

_MAX_CENTRES = 2**26
_MARKERS = ("zarr.json", ".zarray", ".zgroup")
_Y_NAMES = frozenset({"y", "lat", "latitude", "row", "rows", "height", "northing"})
_X_NAMES = frozenset({"x", "lon", "longitude", "col", "cols", "column", "width", "easting"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The array of a store and the group that it lies in."""

    array: zarr.Array[Any]
    """The pixels."""
    group: zarr.Group | None
    """Where its coordinates are, if anywhere."""
    names: tuple[str, ...]
    """Dimension names, lower case; empty where there are none."""

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the group and, above them, of the array."""
        return (dict(self.group.attrs) if self.group is not None else {}) | dict(self.array.attrs)


class ZarrScene:
    """A Zarr array as a scene."""

    def __init__(self, array: zarr.Array[Any], info: SceneInfo, bands: tuple[int, ...], order: Order) -> None:
        self._array = array
        self._info = info
        self._bands = bands
        self._order = order

    @property
    def info(self) -> SceneInfo:
        """What the header says."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """The selected bands, counted from 1."""
        return self._bands

    def read(self, window: Window) -> Tile:
        """Read a window that lies inside the scene.

        Raises
        ------
        WindowError
            The window reaches outside.
        SourceError
            A chunk is damaged.
        """
        check_inside(self._info, window)
        try:
            pixels = self._pixels(window)
        except (OSError, ValueError, RuntimeError) as error:
            raise SourceError(
                f"{self._array.store_path} cannot be read at {window}: {error}; a chunk is damaged there; copy or make it again"
            ) from error
        return Tile(window=window, pixels=pixels, valid=where_valid(pixels, self._info.nodata))

    def _pixels(self, window: Window) -> NDArray[Any]:
        """Return (bands, height, width); bands that nobody asked for are decoded only in shared chunks."""
        rows, cols = window.to_slices()
        if self._order == "yx":
            return np.stack([np.asarray(self._array[rows, cols])] * len(self._bands))
        if self._order == "yxb":
            # Here the bands of a pixel usually share a chunk: one read.
            stored = np.asarray(self._array[rows, cols, :])
            return np.ascontiguousarray(np.moveaxis(stored, -1, 0)[[band - 1 for band in self._bands]])
        return np.stack([np.asarray(self._array[band - 1, rows, cols]) for band in self._bands])

    def close(self) -> None:
        """Do nothing: a local store keeps no file open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def is_zarr(path: Path) -> bool:
    """Tell whether a directory holds a Zarr array or group."""
    return any((path / marker).is_file() for marker in _MARKERS)


def open_zarr_scene(spec: SceneSpec) -> ZarrScene:
    """Open the array of ``spec`` and check all that can be checked without decoding pixels."""
    try:
        return _described(spec)
    except PipelineError:
        raise
    except Exception as error:  # metadata may hold anything, and zarr raises many kinds
        raise SourceError(
            f"{spec.uri} has metadata that make no sense: {error}; a 2-D or 3-D array is expected; make or copy it again"
        ) from error


def _described(spec: SceneSpec) -> ZarrScene:
    found = _find(spec.uri)
    check_codecs(spec.uri, found.array.metadata.to_dict())
    check_dtype(spec.uri, str(found.array.dtype))
    order = _order(spec.uri, found)
    height, width, n_bands = _sizes(found.array.shape, order)
    check_size(spec, height, width)
    check_block_bytes(spec.uri, tuple(map(int, found.array.chunks)), found.array.dtype.itemsize)
    bands = spec.bands or tuple(range(1, n_bands + 1))
    check_bands(spec, bands, n_bands)
    nodata = spec.nodata if spec.nodata is not None else _nodata(spec.uri, dict(found.array.attrs))
    chunk_rows, chunk_cols, _ = _sizes(found.array.chunks, order)
    info = SceneInfo(
        driver="Zarr",
        height=height,
        width=width,
        n_bands=n_bands,
        dtype=str(found.array.dtype),
        nodata=nodata,
        mask_kind="none" if nodata is None else "value",
        georef=Georef(crs_wkt=_crs_wkt(found), transform=_transform(found, (height, width))),
        block_shape=(chunk_rows, chunk_cols),
        random_access=True,
        band_names=tuple(f"band_{band}" for band in range(1, n_bands + 1)),
    )
    return ZarrScene(found.array, info, bands, order)


def _find(uri: str) -> _Found:
    """Return the array of a store with the group around it."""
    node = _open(uri, Path(uri))
    if isinstance(node, zarr.Array):
        parent = Path(uri).absolute().parent
        group = _open(uri, parent) if is_zarr(parent) else None
        return _with_names(node, group if isinstance(group, zarr.Group) else None)
    array = _only_array(uri, node)
    if array is None:
        level = node.get("0")
        if not isinstance(level, zarr.Group):
            raise SourceError(
                f"{uri} is a Zarr group without a 2-D or 3-D array and without a level 0; give the path of the scene's array"
            )
        node, array = level, _only_array(uri, level)
        if array is None:
            raise SourceError(f"level 0 of {uri} has no 2-D or 3-D array; give the path of the scene's array")
    return _with_names(array, node)


def _open(uri: str, path: Path) -> zarr.Array[Any] | zarr.Group:
    try:
        node: zarr.Array[Any] | zarr.Group = zarr.open(InsideStore(path, read_only=True), mode="r", use_consolidated=False)
    except SourceError:
        raise
    except Exception as error:  # zarr raises many kinds for metadata that makes no sense
        raise SourceError(
            f"{uri} does not open as Zarr: {error}; version 2 or 3 metadata is expected; make or copy it again"
        ) from error
    return node


def _only_array(uri: str, group: zarr.Group) -> zarr.Array[Any] | None:
    """Return the level ``0`` if it is an array, else the only 2-D or 3-D array, None where there is none."""
    level = group.get("0")
    if isinstance(level, zarr.Array):
        return level
    arrays = {name: array for name, array in group.arrays() if array.ndim in (2, 3)}
    if len(arrays) > 1:
        raise SourceError(
            f"{uri} has {len(arrays)} arrays ({', '.join(sorted(arrays))}); a scene is one; give its path, "
            "for example "
            f"{uri.rstrip('/')}/{min(arrays)}"
        )
    return next(iter(arrays.values()), None)


def _with_names(array: zarr.Array[Any], group: zarr.Group | None) -> _Found:
    stored = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    names = tuple(str(name).lower() for name in stored) if isinstance(stored, (list, tuple)) else ()
    return _Found(array=array, group=group, names=names)


def _order(uri: str, found: _Found) -> Order:
    """Return the order of the axes: y, x and band."""
    shape = found.array.shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise SourceError(f"{uri} has the shape {shape}; (y, x), (band, y, x) or (y, x, band) is expected")
    if len(shape) == 2:
        return "yx"
    named = ["y" if n in _Y_NAMES else "x" if n in _X_NAMES else "b" for n in found.names]
    if named == ["b", "y", "x"]:
        return "byx"
    if named == ["y", "x", "b"]:
        return "yxb"
    if "x" in named and "y" in named:
        raise SourceError(f"{uri} has the dimensions {found.names}; (band, y, x) or (y, x, band) is expected; transpose it")
    return "byx" if shape[0] <= shape[2] else "yxb"


def _sizes(shape: tuple[int, ...], order: Order) -> tuple[int, int, int]:
    """Return (y, x, band) of a shape."""
    if order == "yx":
        return shape[0], shape[1], 1
    return (shape[1], shape[2], shape[0]) if order == "byx" else (shape[0], shape[1], shape[2])


def _nodata(uri: str, attributes: dict[str, Any]) -> float | None:
    """Return the attribute ``nodata`` or ``_FillValue`` as a number."""
    value = attributes.get("nodata", attributes.get("_FillValue"))
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    try:  # xarray stores a float _FillValue of Zarr version 3 as the base64 text of eight bytes
        return float(struct.unpack("<d", base64.b64decode(value, validate=True))[0])
    except (TypeError, ValueError, binascii.Error, struct.error) as error:
        raise SourceError(f"{uri} has the nodata attribute {value!r}; a number is expected; pass --nodata") from error


def _crs_wkt(found: _Found) -> str | None:
    """Return the CRS of the ``proj:`` convention or of the CF grid mapping; None where nobody knows it."""
    attributes = found.attributes
    mapping = _grid_mapping(found)
    for text in (
        attributes.get("proj:wkt2"),
        attributes.get("proj:code"),
        mapping.get("crs_wkt"),
        mapping.get("spatial_ref"),
    ):
        if isinstance(text, str) and text:
            try:
                return wkt_of_code(text)
            except SpecError:
                continue
    return None


def _grid_mapping(found: _Found) -> dict[str, Any]:
    """Return the attributes of the CF grid mapping variable."""
    variable = _member(found, str(found.attributes.get("grid_mapping", "spatial_ref")))
    return {} if variable is None else dict(variable.attrs)


def _member(found: _Found, name: str) -> zarr.Array[Any] | zarr.Group | None:
    """Return what the metadata mean by ``name``: a member of the same group, or nothing."""
    if found.group is None or not is_plain_name(name):
        return None
    return found.group.get(name)


def _transform(found: _Found, shape: tuple[int, int]) -> tuple[float, ...] | None:
    """Return the transform from the ``spatial:`` convention, or from evenly spaced x and y coordinates."""
    stored = found.attributes.get("spatial:transform")
    if isinstance(stored, (list, tuple)) and len(stored) >= 6:
        return tuple(float(number) for number in stored[:6])
    y_axis = _axis(found, _Y_NAMES, shape[0])
    x_axis = _axis(found, _X_NAMES, shape[1])
    if y_axis is None or x_axis is None:
        return None
    return (x_axis[1], 0.0, x_axis[0] - x_axis[1] / 2, 0.0, y_axis[1], y_axis[0] - y_axis[1] / 2)


def _axis(found: _Found, known: frozenset[str], size: int) -> tuple[float, float] | None:
    """Return (first centre, step) of an axis' coordinates; None where they are missing or uneven."""
    name = next((name for name in found.names if name in known), None)
    array = None if name is None else _member(found, name)
    if not isinstance(array, zarr.Array) or array.shape != (size,) or size < 2 or array.dtype.kind not in "iuf":
        return None
    check_codecs(f"the coordinate {name}", array.metadata.to_dict())
    check_block_bytes(f"the coordinate {name}", tuple(map(int, array.chunks)), array.dtype.itemsize)
    if size > _MAX_CENTRES:
        raise SourceError(
            f"the coordinate {name} has {size} values; at most {_MAX_CENTRES} are read: state the place with spatial:transform"
        )
    centres = np.asarray(array[:], dtype=np.float64)
    step = (centres[-1] - centres[0]) / (size - 1)
    even = centres[0] + step * np.arange(size)
    # Coordinates are often rounded when written: a hundredth of a pixel is even enough.
    return (float(centres[0]), float(step)) if np.abs(centres - even).max() <= abs(step) / 100 else None
