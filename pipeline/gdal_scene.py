"""How are files read? With one GDAL handle, checked when it is opened, window by window.

Only a short list of drivers may open it. The list matters: GDAL opens a file by its content, and a VRT named
``scene.tif`` may read any other file of the machine.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.session import DummySession
from rasterio.windows import Window as RasterioWindow

from pipeline.damage import check_complete
from pipeline.errors import SourceError
from pipeline.georef import Georef
from pipeline.scene_info import (
    MaskKind,
    SceneInfo,
    SceneSpec,
    Tile,
    check_bands,
    check_block_bytes,
    check_dtype,
    check_inside,
    check_ratio,
    check_regular,
    check_size,
    local_path,
    where_valid,
)
from pipeline.window import Window

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

DRIVERS = ("GTiff", "JP2OpenJPEG", "PNG", "JPEG")
"""The formats that are read. A cloud-optimised GeoTIFF is a GTiff."""

GDAL_ERRORS = (RasterioError, CPLE_BaseError)
"""What rasterio raises: mostly its own errors, but properties of a damaged file give GDAL's, which have no
public name."""

_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # companions have exact names, which are checked below
    "GDAL_PAM_ENABLED": "NO",  # neither read nor write .aux.xml files beside the scene
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # the fast path returns zeros for a truncated PNG
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",  # damaged JPEG data is otherwise decoded as grey
}

LOST_TAG = "ATROUS_LOST"
"""In a staged copy, the places of which its source gave nothing: JSON, [row, column, height, width] each."""

_COMPANIONS = (".msk", ".MSK", ".ovr", ".OVR")
_TIFF_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_IN_ORDER = frozenset({"PNG", "JPEG"})
_MAX_STRIP_BYTES = 64 * 2**20
_MIN_STRIP_ROWS = 64
_MAX_JP2_TILE_PX = 4096 * 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Which stored band plays which part."""

    bands: tuple[int, ...]
    """Bands that are read as pixels."""
    colours: tuple[int, ...]
    """All bands of the file but the alpha band."""
    mask_kind: MaskKind
    """What tells valid pixels from others."""
    alpha: int | None
    """The band that is read as alpha."""


class GdalScene:
    """A raster file. For one thread: the handle is not thread-safe.

    A handle that failed once is not used again. Measured with GDAL 3.10: the second read of a damaged tile gives the buffer that was not
    decoded as pixels, without an error, where ``GDAL_NUM_THREADS`` is set; and a JPEG goes on with the row behind the damage.
    """

    def __init__(self, reader: DatasetReader, info: SceneInfo, layout: _Layout) -> None:
        self._reader = reader
        self._failed = False
        self._layout = layout
        self._info = info

    @property
    def info(self) -> SceneInfo:
        """What the header says."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """The selected bands, counted from 1."""
        return self._layout.bands

    @property
    def colours(self) -> tuple[int, ...]:
        """All bands of the file, counted from 1, but the alpha band; as many as ``info.n_bands``."""
        return self._layout.colours

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...] | None:
        """Red, green and blue, 0 to 255, that the numbers 0, 1, ... of the first selected band stand for; None: there is no palette."""
        band = self._layout.bands[0]
        if self._reader.colorinterp[band - 1] != ColorInterp.palette:
            return None
        colours = self._reader.colormap(band)
        return tuple(colours.get(number, (0, 0, 0))[:3] for number in range(max(colours) + 1))

    @property
    def in_order(self) -> bool:
        """Whether rows can only be decoded from the first one on."""
        if self._reader.driver == "GTiff" and self._info.block_shape[0] == 1 < self._info.height:
            # GDAL reads a single large strip row by row, and calls each a block; only the first has a place in the file.
            first, second = (self._reader.get_tag_item(f"BLOCK_OFFSET_0_{row}", "TIFF", bidx=1) for row in (0, 1))
            return first is not None and second is None
        return self._reader.driver in _IN_ORDER

    @property
    def lost(self) -> tuple[Window, ...]:
        """Places of which the source of a staged copy gave nothing."""
        try:
            places = json.loads(self._reader.tags().get(LOST_TAG, "[]"))
            windows = [Window(row_off=row, col_off=col, height=height, width=width) for row, col, height, width in places]
            return tuple(window for window in windows if self._info.window.contains(window))
        except (ValueError, TypeError):
            return ()

    def read(self, window: Window) -> Tile:
        """Read a window that lies inside the scene.

        Raises
        ------
        WindowError
            The window reaches outside.
        SourceError
            The file is damaged there.
        """
        check_inside(self._info, window)
        try:
            with gdal_environment():
                if self._failed:
                    self._open_anew()
                pixels, valid = self._pixels_and_valid(window)
        except GDAL_ERRORS as error:
            self._failed = True
            reason = str(error.__cause__ or error)
        else:
            return Tile(window=window, pixels=pixels, valid=valid)
        # Raised out here: GDAL's own errors do not unpickle, so a chained one would not cross processes.
        raise SourceError(
            f"{self._reader.name} cannot be read at {window}: {reason}; the file is damaged there; copy or download it again"
        )

    def _pixels_and_valid(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return pixels and valid of a `Tile`; alpha comes with the pixels, in one pass."""
        place = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        layout = self._layout
        if layout.alpha is not None:
            stack = self._reader.read([*layout.bands, layout.alpha], window=place)
            return stack[:-1], stack[-1] != 0
        pixels = self._reader.read(list(layout.bands), window=place)
        if layout.mask_kind == "mask":
            return pixels, self._reader.read_masks(1, window=place) != 0
        return pixels, where_valid(pixels, self._info.nodata)

    def _open_anew(self) -> None:
        self._reader.close()
        self._reader = _open_reader(Path(self._reader.name))
        self._failed = False

    def close(self) -> None:
        """Give back the file handle."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def gdal_environment(**options: str | int) -> rasterio.Env:
    """Return the settings for opening and reading files; the empty session keeps rasterio off credentials."""
    return rasterio.Env(session=DummySession(), **_OPTIONS, **options)


def open_gdal_scene(spec: SceneSpec, *, indices: bool = False) -> GdalScene:
    """Open the file of ``spec`` and check all that can be checked without decoding pixels; ``indices`` into a palette only where asked."""
    path = local_path(spec.uri).absolute()
    if path.exists():
        check_regular(path)
    _check_companions(path)
    try:
        with gdal_environment():
            return _opened(spec, path, indices=indices)
    except GDAL_ERRORS as error:
        reason = str(error)
    # Raised out here for the reason given in `GdalScene.read`.
    raise SourceError(
        f"{spec.uri} does not open: {reason}; the allowed drivers are {', '.join(DRIVERS)}; if it is a good "
        "file of another format, convert it with gdal_translate -of COG"
    )


def _check_companions(path: Path) -> None:
    """Refuse files that GDAL would take for the mask or the overviews of ``path`` and that are no TIFF of the same folder.

    GDAL opens them with any of its drivers: a mask that is a VRT may show any file of the machine.
    """
    for companion in (path.with_name(path.name + suffix) for suffix in _COMPANIONS):
        if not companion.exists():
            continue
        near = companion.resolve().parent in {path.parent.resolve(), path.resolve().parent}
        if not near or not companion.is_file() or not _starts_as_tiff(companion):
            raise SourceError(
                f"{companion} would be read as the mask or the overviews of the scene; a TIFF in the same folder is expected; move it away"
            )


def _starts_as_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in _TIFF_STARTS


def _open_reader(path: Path) -> DatasetReader:
    # An absolute path never starts with a driver's prefix. rasterio.open takes no list of drivers (1.4, 1.5),
    # its reader does.
    with warnings.catch_warnings():  # a scene without georeference is as good as any other
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return DatasetReader(str(path), driver=list(DRIVERS))


def _opened(spec: SceneSpec, path: Path, *, indices: bool) -> GdalScene:
    reader = _open_reader(path)
    try:
        return _checked(spec, reader, indices=indices)
    except BaseException:
        reader.close()
        raise


def _checked(spec: SceneSpec, reader: DatasetReader, *, indices: bool) -> GdalScene:
    """Refuse what cannot be read, cheapest check first."""
    if reader.count == 0:
        raise SourceError(f"{spec.uri} holds no band of its own, perhaps several images; extract one with gdal_translate")
    check_size(spec, reader.height, reader.width)
    check_bands(spec, spec.bands or (), reader.count)
    _check_bytes(spec, reader)
    layout = _layout(spec, reader)
    check_dtype(spec.uri, reader.dtypes[layout.bands[0] - 1])
    if not indices:
        _check_no_palette(spec.uri, reader, layout)
    if spec.on_read_error == "fail":
        check_complete(spec.uri, reader)
    return GdalScene(reader, _info(spec, reader, layout), layout)


def _check_bytes(spec: SceneSpec, reader: DatasetReader) -> None:
    """Refuse bombs. A GeoTIFF may be sparse, and costs only those of its blocks that are read, so they are what is limited."""
    itemsize = max(np.dtype(dtype).itemsize for dtype in reader.dtypes)
    if reader.driver != "GTiff":
        n_pixels = reader.height * reader.width
        check_ratio(spec, n_pixels=n_pixels, n_bytes=n_pixels * reader.count * itemsize, file_bytes=Path(spec.uri).stat().st_size)
        return
    shared = reader.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL"
    check_block_bytes(spec.uri, (*reader.block_shapes[0], reader.count if shared else 1), itemsize)


def _layout(spec: SceneSpec, reader: DatasetReader) -> _Layout:
    """Decide which bands are pixels and what tells valid ones.

    First the spec's nodata, then a mask, alpha, the file's nodata: that is the order of rasterio's
    `dataset_mask`, led by the spec. A band tagged as alpha that is asked for by number is data: four-band
    aerial images often carry that tag on their infrared.
    """
    wanted = spec.bands or ()
    alphas = [b for b in reader.indexes if reader.colorinterp[b - 1] == ColorInterp.alpha and b not in wanted]
    colours = tuple(b for b in reader.indexes if b not in alphas)
    if not colours:
        raise SourceError(f"{spec.uri} has no band but alpha; give a scene with pixels")
    kind = _mask_kind(spec, reader, has_alpha=bool(alphas))
    return _Layout(
        bands=wanted or colours,
        colours=colours,
        mask_kind=kind,
        alpha=alphas[0] if kind == "alpha" else None,
    )


def _mask_kind(spec: SceneSpec, reader: DatasetReader, *, has_alpha: bool) -> MaskKind:
    flags = reader.mask_flag_enums[0]
    if spec.nodata is not None:
        return "value"
    if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
        return "mask"
    if has_alpha:
        return "alpha"
    return "value" if reader.nodata is not None else "none"


def _check_no_palette(uri: str, reader: DatasetReader, layout: _Layout) -> None:
    """Refuse images whose pixels are numbers of colours."""
    for band in layout.bands:
        if reader.colorinterp[band - 1] == ColorInterp.palette:
            raise SourceError(
                f"band {band} of {uri} holds indices into a palette; colours are expected; convert it with "
                "gdal_translate -expand rgb"
            )


def _info(spec: SceneSpec, reader: DatasetReader, layout: _Layout) -> SceneInfo:
    nodata = spec.nodata if spec.nodata is not None else reader.nodata
    rows, cols = reader.block_shapes[0]
    return SceneInfo(
        driver=reader.driver,
        height=reader.height,
        width=reader.width,
        n_bands=len(layout.colours),
        dtype=reader.dtypes[layout.bands[0] - 1],
        nodata=None if nodata is None or layout.mask_kind != "value" else float(nodata),
        mask_kind=layout.mask_kind,
        georef=Georef(crs_wkt=reader.crs.to_wkt() if reader.crs else None, transform=tuple(reader.transform)[:6]),
        block_shape=(int(rows), int(cols)),
        random_access=_has_random_access(spec.uri, reader),
        band_names=tuple(_band_name(reader, band) for band in layout.colours),
    )


def _band_name(reader: DatasetReader, band: int) -> str:
    """Return the file's description of the band, or its colour, or its number."""
    colour = reader.colorinterp[band - 1]
    unnamed = colour in (ColorInterp.undefined, ColorInterp.gray)
    return reader.descriptions[band - 1] or (f"band_{band}" if unnamed else str(colour.name))


def _has_random_access(uri: str, reader: DatasetReader) -> bool:
    """Tell whether windows decode little else.

    Measured on 8192 x 8192 px: reading all windows costs 33 full reads of a PNG, 5 of one-row strips.
    """
    if reader.driver == "GTiff":
        rows, cols = reader.block_shapes[0]
        strip_bytes = rows * cols * np.dtype(reader.dtypes[0]).itemsize * reader.count
        thick = rows >= min(_MIN_STRIP_ROWS, reader.height) and strip_bytes <= _MAX_STRIP_BYTES
        return bool(cols < reader.width or thick)
    if reader.driver == "JP2OpenJPEG":
        return bool(_jp2_tile_px(uri) <= min(_MAX_JP2_TILE_PX, reader.height * reader.width - 1))
    return False


def _jp2_tile_px(uri: str) -> int:
    """Return the pixels of one JPEG 2000 tile, from the SIZ segment (ISO 15444-1, A.5.1).

    GDAL reports blocks of its own making.
    """
    with Path(uri).open("rb") as file:
        head = file.read(2**20)
    start = head.find(b"\xff\x4f\xff\x51")  # start of codestream, then SIZ
    if start < 0:
        return 2**62
    width, height = (int.from_bytes(head[start + at : start + at + 4], "big") for at in (24, 28))
    return width * height
