"""How do labels become a GeoTIFF that any GIS opens? Window by window into tiles, then into a COG.

GDAL builds a COG from a finished file only, so the labels pass through a plain tiled GeoTIFF beside it. At no
time is more than one window in memory. The COG is read back and compared before anybody sees it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import google_crc32c
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window as RasterioWindow

from pipeline.decimate import cell_windows
from pipeline.errors import StoreError
from pipeline.labels import NODATA_LABEL
from pipeline.store import read_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.store_layout import StoreLayout
    from pipeline.window import Window

_TILE_PX = 512
_WINDOW_PX = 2048
"""Side of what is held in memory; a multiple of the tile, so that no tile is compressed twice."""


def write_label_cog(store: Path, layout: StoreLayout, target: Path, *, on_window: Callable[[NDArray[np.uint8]], None]) -> None:
    """Write the labels of an output as a Cloud Optimized GeoTIFF, with colours, class names and overviews.

    Parameters
    ----------
    store
        Root of the output.
    layout
        Its layout.
    target
        The file to make; a second one, ``<target>.tiles.tif``, is made and removed beside it.
    on_window
        Called with the labels of each window, (height, width) u1, as they pass.

    Raises
    ------
    StoreError
        The output is damaged, the file cannot be written, or it does not read back as it was written.
    """
    tiles = target.with_name(f"{target.name}.tiles.tif")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            checksum = _write_tiles(store, layout, tiles, on_window)
            _optimise(tiles, target)
            _check(target, layout, checksum)
    except RasterioError as error:
        raise StoreError(f"cannot write {target}: {error}; check the free space and the path") from error
    finally:
        tiles.unlink(missing_ok=True)


def n_label_windows(layout: StoreLayout) -> int:
    """Return how often ``write_label_cog`` calls ``on_window``."""
    return sum(1 for _ in _windows(layout))


def _write_tiles(store: Path, layout: StoreLayout, tiles: Path, on_window: Callable[[NDArray[np.uint8]], None]) -> int:
    checksum = 0
    with rasterio.open(tiles, "w", **_profile(layout)) as raster:
        raster.write_colormap(1, {i: (*one.rgb, 255) for i, one in enumerate(layout.classes)})
        raster.colorinterp = [ColorInterp.palette]
        raster.set_band_description(1, "class")
        raster.update_tags(1, **{f"class_{i}": one.name for i, one in enumerate(layout.classes)})
        for window in _windows(layout):
            labels = read_labels(store, window)
            raster.write(labels, 1, window=_to_rasterio(window))
            checksum = google_crc32c.extend(checksum, labels.tobytes())
            on_window(labels)
    return int(checksum)


def _profile(layout: StoreLayout) -> dict[str, Any]:
    georef = layout.georef
    profile = {
        "driver": "GTiff",
        "height": layout.height,
        "width": layout.width,
        "count": 1,
        "dtype": "uint8",
        "nodata": NODATA_LABEL,
        "crs": georef.crs_wkt,
        "tiled": True,
        "blockxsize": _TILE_PX,
        "blockysize": _TILE_PX,
        "compress": "deflate",
        "zlevel": 1,
        "bigtiff": "if_safer",
    }
    return profile | ({} if georef.transform is None else {"transform": Affine(*georef.transform)})


def _optimise(tiles: Path, target: Path) -> None:
    rasterio.shutil.copy(
        tiles,
        target,
        driver="COG",
        BLOCKSIZE=_TILE_PX,
        COMPRESS="DEFLATE",
        # A mean of class ids is no class.
        OVERVIEW_RESAMPLING="MODE",
        BIGTIFF="IF_SAFER",
    )


def _check(target: Path, layout: StoreLayout, expected: int) -> None:
    """Compare what is in the file with what was read from the output; a full disk may cut it in silence."""
    checksum = 0
    with rasterio.open(target) as raster:
        for window in _windows(layout):
            labels = raster.read(1, window=_to_rasterio(window))
            checksum = google_crc32c.extend(checksum, labels.tobytes())
    if checksum != expected:
        raise StoreError(f"{target} does not read back as it was written; check the disk and export again")


def _windows(layout: StoreLayout) -> Iterator[Window]:
    return cell_windows((layout.height, layout.width), _TILE_PX, target_px=max(_WINDOW_PX, layout.chunk))


def _to_rasterio(window: Window) -> RasterioWindow:
    return RasterioWindow(window.col_off, window.row_off, window.width, window.height)
