"""What about files that cannot be read window by window? Copy them once, in order, to a tiled GeoTIFF.

A window at the bottom of a PNG costs the decoding of all rows above it, again for each window. `stage` reads
such a scene once, strip by strip, and gives back the spec of a file with the same pixels and the same valid
ones.

The copy is written under a temporary name, read back and compared, flushed to disk and only then renamed: a
file of the final name is complete. What the source could not give, where that is no error, is listed in a tag
of the copy, so that a later call that finds it knows as much.
"""

from __future__ import annotations

import json
import shutil
import uuid
import zlib
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from pipeline.damage import check_complete
from pipeline.durable_file import publish
from pipeline.errors import SourceError, SpecError, StoreError
from pipeline.gdal_scene import GDAL_ERRORS, LOST_TAG, gdal_environment, open_gdal_scene
from pipeline.scene import open_scene, scene_files, unreadable_in
from pipeline.scene_info import SceneSpec
from pipeline.vrt import is_vrt
from pipeline.vrt_scene import VrtScene, open_vrt_scene
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from rasterio.io import DatasetWriter

    from pipeline.gdal_scene import GdalScene
    from pipeline.scene_info import Scene, SceneInfo, Tile

_TAG = "ATROUS_STAGED_FROM"
_MAX_STRIP_BYTES = 512 * 2**20


def needs_staging(info: SceneInfo) -> bool:
    """Tell whether windows of the scene cost much more than their own pixels, so that a tiled copy pays."""
    return not info.random_access


def stage(scene_spec: SceneSpec, dest: Path, on_progress: Callable[[int, int], None] | None = None) -> SceneSpec:
    """Copy a file to the tiled GeoTIFF ``dest`` and return the spec that reads the same scene from there.

    An existing ``dest`` that was made from the same source (size, time of change, header) is used as it is.
    Memory: one row of tiles, all bands, twice.

    Parameters
    ----------
    scene_spec
        A file; a Zarr directory needs no staging.
    dest
        Where to write; its directory exists.
    on_progress
        Called with (rows copied, rows in all).

    Raises
    ------
    SourceError
        The source is damaged.
    StoreError
        The copy cannot be written, for example because the disk is full.
    """
    source_path = Path(scene_spec.uri)
    if source_path.is_dir():
        raise SpecError(f"{scene_spec.uri} is a directory; only files are staged; read the Zarr store as it is")
    with _open_plain(scene_spec) as selected:
        colours = selected.colours
        result = _staged_spec(scene_spec, dest, selected)
        stored_bands = replace(scene_spec, bands=colours)
    with open_scene(stored_bands) as scene:
        origin = _origin(stored_bands, scene)
        if not _is_finished(dest, origin):
            _write_durably(scene, dest, origin, on_progress)
    return result


def _open_plain(spec: SceneSpec) -> GdalScene | VrtScene:
    if spec.allow_vrt and is_vrt(Path(spec.uri)):
        return open_vrt_scene(spec, open_gdal_scene)
    return open_gdal_scene(spec)


def _staged_spec(spec: SceneSpec, dest: Path, scene: GdalScene | VrtScene) -> SceneSpec:
    """Return the spec of the copy: bands counted among those that are copied, nodata as the source has it."""
    bands = tuple(scene.colours.index(band) + 1 for band in scene.bands)
    return replace(spec, uri=str(dest), bands=bands, nodata=scene.info.nodata)


def _origin(spec: SceneSpec, scene: Scene) -> str:
    """Return what tells this source from another: size, time of change, and what the header says."""
    stats = [path.stat() for path in scene_files(spec)]
    facts = {
        "size": sum(status.st_size for status in stats),
        "mtime_ns": max(status.st_mtime_ns for status in stats),
        "on_read_error": spec.on_read_error,
        "bands": scene.bands,
        "info": scene.info.to_dict(),
    }
    return json.dumps(facts, sort_keys=True)


def _is_finished(dest: Path, origin: str) -> bool:
    """Tell whether ``dest`` is a copy of this very source."""
    if not dest.exists():
        return False
    try:
        with gdal_environment(), DatasetReader(str(dest.absolute()), driver=["GTiff"]) as reader:
            check_complete(str(dest), reader)
            return bool(reader.tags().get(_TAG) == origin)
    except (*GDAL_ERRORS, SourceError):
        return False


def _write_durably(scene: Scene, dest: Path, origin: str, on_progress: Callable[[int, int], None] | None) -> None:
    """Write under a temporary name, check, flush, rename."""
    partial = dest.absolute().with_name(f"{dest.name}.{uuid.uuid4().hex}.partial")
    try:
        checksums = _copy(scene, partial, origin, on_progress)
        _check_written(partial, scene, origin, checksums)
        publish(partial, dest.absolute())
    except SourceError:
        raise
    except (*GDAL_ERRORS, OSError) as error:
        reason = str(error.__cause__ or error)
    else:
        return
    finally:
        partial.unlink(missing_ok=True)
    # Raised out here: GDAL's own errors do not unpickle, so none may be chained.
    raise StoreError(_failure(dest, reason, n_bytes=_bytes_needed(scene.info)))


def _failure(dest: Path, reason: str, *, n_bytes: int) -> str:
    """Return the message for a copy that could not be written."""
    folder = dest.absolute().parent
    free = f"{shutil.disk_usage(folder).free} bytes are free" if folder.is_dir() else "it does not exist"
    return (
        f"the tiled copy {dest} could not be written: {reason}; it needs up to {n_bytes} bytes in {folder}, "
        f"where {free}; make room or choose another folder"
    )


def _bytes_needed(info: SceneInfo) -> int:
    """Return the size of the copy if nothing compresses, bytes."""
    per_pixel = np.dtype(info.dtype).itemsize * info.n_bands + (info.mask_kind in ("alpha", "mask"))
    return info.height * info.width * per_pixel + 2**16


def _copy(scene: Scene, path: Path, origin: str, on_progress: Callable[[int, int], None] | None) -> list[int]:
    """Copy strips as high as a tile, so that each tile is compressed once; return their checksums."""
    checksums = []
    with (
        gdal_environment(GDAL_TIFF_INTERNAL_MASK="YES"),
        rasterio.open(str(path), "w", **_profile(scene.info)) as target,
    ):
        target.update_tags(**{_TAG: origin})
        for strip in _strips(scene.info):
            tile = scene.read(strip)
            _write(target, tile, with_mask=scene.info.mask_kind in ("alpha", "mask"))
            checksums.append(_checksum(tile))
            if on_progress is not None:
                on_progress(strip.row_end, scene.info.height)
        lost = [astuple(place) for place in unreadable_in(scene, scene.info.window)]
        if lost:
            target.update_tags(**{LOST_TAG: json.dumps(lost)})
    return checksums


def _write(target: DatasetWriter, tile: Tile, *, with_mask: bool) -> None:
    window = tile.window
    place = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
    target.write(tile.pixels, window=place)
    if with_mask:
        target.write_mask(tile.valid, window=place)


def _check_written(path: Path, scene: Scene, origin: str, checksums: list[int]) -> None:
    """Read the copy back, strip by strip.

    GDAL says nothing when a disk is full while it closes a file: measured, a copy that lacked one byte had
    lost its mask, and so all of its pixels were valid.
    """
    try:
        with open_scene(SceneSpec(uri=str(path), nodata=scene.info.nodata, on_read_error="nodata")) as copy:
            same = [_checksum(copy.read(strip)) for strip in _strips(scene.info)] == checksums
    except SourceError as error:
        raise OSError(str(error)) from error
    if not same or not _is_finished(path, origin):
        raise OSError("what was written reads back differently")


def _strips(info: SceneInfo) -> list[Window]:
    """Return the windows of full width and a tile's height, from top to bottom."""
    height = _tile_px(info)
    return [
        Window.from_bounds(rows=(row, min(row + height, info.height)), cols=(0, info.width))
        for row in range(0, info.height, height)
    ]


def _checksum(tile: Tile) -> int:
    return zlib.crc32(np.packbits(tile.valid).data, zlib.crc32(np.ascontiguousarray(tile.pixels).data))


def _tile_px(info: SceneInfo) -> int:
    """Return the side of a tile: 512 px, or less where a row of such tiles would take too much memory."""
    row_bytes = info.width * info.n_bands * np.dtype(info.dtype).itemsize
    return 512 if 512 * row_bytes <= _MAX_STRIP_BYTES else 128


def _profile(info: SceneInfo) -> dict[str, Any]:
    """Return rasterio's options; deflate is the fast lossless compression that every build of GDAL has."""
    return {
        "driver": "GTiff",
        "height": info.height,
        "width": info.width,
        "count": info.n_bands,
        "dtype": info.dtype,
        "crs": info.georef.crs_wkt,
        "transform": None if info.georef.transform is None else rasterio.Affine(*info.georef.transform),
        "tiled": True,
        "blockxsize": _tile_px(info),
        "blockysize": _tile_px(info),
        "interleave": "pixel" if info.n_bands <= 4 else "band",
        "photometric": "MINISBLACK",  # else four 8-bit bands would be taken for red, green, blue and alpha
        "alpha": "NO",
        "compress": "deflate",
        "zlevel": 1,
        "predictor": 1 if info.dtype.startswith("float") else 2,
        "bigtiff": "IF_SAFER",
    }
