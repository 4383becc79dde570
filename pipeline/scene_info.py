"""What do all kinds of scenes share? What is known before the pixels, and what a read gives.

`pipeline.scene` opens scenes; this module only names what comes out, so that the GDAL and the Zarr reader
need not know each other.
"""

from __future__ import annotations

import math
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

import numpy as np

from pipeline.errors import SourceError, SpecError, WindowError
from pipeline.georef import Georef
from pipeline.window import Window

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

MaskKind = Literal["none", "value", "alpha", "mask"]
OnReadError = Literal["fail", "nodata"]

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""Pixel types that are read. Complex pixels have no brightness, and 64-bit integers do not fit into the
float64 of a stretch."""

MAX_PIXELS = 2**40
"""Largest height x width that is read where nobody gave another limit, px."""
MAX_BANDS = 1024
"""Most bands that a scene may have."""
MAX_BLOCK_BYTES = 2 * 2**30
"""Largest block or chunk of a file that is read, bytes, decoded: it is decoded whole, so a header may otherwise ask for all memory."""
_BOMB_RATIO = 1000
"""Decoded bytes a byte of a PNG, JPEG or JPEG 2000 file, above which a large one is taken for a bomb: deflate reaches 1032 with zeros."""
_BOMB_PIXELS = 2**30

# GDAL reads "NAME:rest" as a driver's own address, which can reach the network, other files or the process's
# memory. One letter is a drive on Windows.
_PREFIX = re.compile(r"^[A-Za-z][A-Za-z0-9_+.-]+:")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSpec:
    """Which pixels of which file are the scene."""

    uri: str
    """Path of a local file, or of a Zarr directory."""
    bands: tuple[int, ...] | None = None
    """Bands to read, counted from 1, in this order. None: all but the alpha band."""
    nodata: float | None = None
    """Value that means "no data", in place of whatever the file says (its alpha band and mask included).
    None: as the file says."""
    max_pixels: int | None = None
    """Largest height x width that is accepted, px; checked before the first read. None: `MAX_PIXELS`, and fewer where a file has
    suspiciously few bytes."""
    on_read_error: OnReadError = "fail"
    """What pixels become that cannot be read: an error, or pixels without data whose places are named."""
    allow_vrt: bool = False
    """Whether a VRT is read: a text that names other files, which must lie in its own folder."""

    def __post_init__(self) -> None:
        if not self.uri:
            raise SpecError("an empty path was given as the scene; give the path of a raster file or of a Zarr directory")
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise SpecError(f"bands {self.bands} were asked for; give at least one, counted from 1, for example 1,2,3")
        if self.on_read_error not in get_args(OnReadError):
            raise SpecError(f"on_read_error {self.on_read_error!r} was given; choose one of {', '.join(get_args(OnReadError))}")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise SpecError(f"a limit of {self.max_pixels} px was given for the scene; give at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneInfo:
    """What the header of a scene says."""

    driver: str
    """GDAL's short name of the format, or ``Zarr``."""
    height: int
    """Rows, px."""
    width: int
    """Columns, px."""
    n_bands: int
    """Bands of the scene, without the one that serves as alpha."""
    dtype: str
    """numpy's name of the pixel type, one of `DTYPES`."""
    nodata: float | None
    """The value that marks pixels as invalid; set only where ``mask_kind`` is ``value``."""
    mask_kind: MaskKind
    """What tells valid pixels from others."""
    georef: Georef
    """CRS and transform."""
    block_shape: tuple[int, int]
    """(height, width) of the unit in which the file stores pixels, px."""
    random_access: bool
    """Whether a window can be read without decoding much of the rest."""
    band_names: tuple[str, ...]
    """One name a band, without alpha."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def window(self) -> Window:
        """The window that covers the scene."""
        return Window.of_shape(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary that strict JSON can hold; NaN or infinity as nodata becomes a string."""
        data = asdict(self)
        if self.nodata is not None and not math.isfinite(self.nodata):
            data["nodata"] = str(self.nodata)
        return data | {
            "georef": self.georef.to_dict(),
            "block_shape": list(self.block_shape),
            "band_names": list(self.band_names),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild the information from `to_dict`."""
        nodata = data["nodata"]
        rows, cols = data["block_shape"]
        typed = {
            "nodata": None if nodata is None else float(nodata),
            "georef": Georef.from_dict(data["georef"]),
            "block_shape": (int(rows), int(cols)),
            "band_names": tuple(data["band_names"]),
        }
        return cls(**(data | typed))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """The pixels of one window."""

    window: Window
    """Where the pixels lie."""
    pixels: NDArray[Any]
    """(bands, height, width), the scene's dtype and units."""
    valid: NDArray[np.bool_]
    """(height, width) bool, False where the scene has no data."""

    def crop(self, window: Window) -> Tile:
        """Return a part of the tile as a copy, so that the rest can be given back."""
        inside = window.relative_to(self.window).to_slices()
        return Tile(window=window, pixels=self.pixels[:, *inside].copy(), valid=self.valid[inside].copy())


class Scene(Protocol):
    """An open raster.

    One thread uses it: GDAL's handles are not thread-safe, so each thread opens a scene of its own.
    """

    @property
    def info(self) -> SceneInfo:
        """What the header says."""
        ...

    @property
    def bands(self) -> tuple[int, ...]:
        """The selected bands, counted from 1, in the order in which `read` gives them."""
        ...

    def read(self, window: Window) -> Tile:
        """Read a window inside the scene; WindowError outside, SourceError where the file is damaged."""
        ...

    def close(self) -> None:
        """Give back the file handle."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def local_path(uri: str) -> Path:
    """Return the path, or refuse GDAL's virtual file systems, driver prefixes and URLs."""
    path = Path(uri)
    virtual = uri.replace("\\", "/").startswith("/vsi") or str(path.absolute()).startswith("/vsi")
    if virtual or "://" in uri or (_PREFIX.match(uri) and not path.exists()):
        raise SourceError(
            f"{uri} was given as the scene; only local files are read so far, not URLs, /vsi paths or "
            "DRIVER: addresses; "
            "download or convert it first"
        )
    return path


def check_dtype(uri: str, dtype: str) -> None:
    """Refuse pixel types that no band of a scene may have."""
    if dtype not in DTYPES:
        raise SourceError(
            f"{uri} has pixels of type {dtype}; {', '.join(DTYPES)} are read; convert it, for example with "
            "gdal_translate -ot Float32"
        )


def check_size(spec: SceneSpec, height: int, width: int) -> None:
    """Refuse scenes with more pixels than the spec allows, before any is read."""
    limit = MAX_PIXELS if spec.max_pixels is None else spec.max_pixels
    if height * width > limit:
        raise SourceError(
            f"{spec.uri} declares {height} x {width} = {height * width} px; at most {limit} px are accepted; raise the limit with "
            "--max-pixels if the file is trusted"
        )


def check_ratio(spec: SceneSpec, *, n_pixels: int, n_bytes: int, file_bytes: int) -> None:
    """Refuse a compressed file that declares more than its bytes can well hold, unless the spec has a limit of its own."""
    if spec.max_pixels is None and n_pixels > _BOMB_PIXELS and n_bytes > _BOMB_RATIO * file_bytes:
        raise SourceError(
            f"{spec.uri} declares {n_pixels} px ({n_bytes} bytes) in a file of {file_bytes} bytes, {n_bytes // max(1, file_bytes)} "
            f"to 1; at most {_BOMB_RATIO} to 1 is expected of a scene so large; give --max-pixels {n_pixels} if the file is trusted"
        )


def check_block_bytes(uri: str, shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse blocks or chunks of ``shape`` that would take too much memory when one is decoded."""
    n_bytes = math.prod(shape) * itemsize
    if n_bytes > MAX_BLOCK_BYTES:
        raise SourceError(
            f"{uri} has chunks of {shape}, {n_bytes} bytes each; at most {MAX_BLOCK_BYTES} bytes are read at once; rechunk it"
        )


def check_regular(path: Path) -> None:
    """Refuse what is neither a file nor a folder: reading a pipe or a device may never end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise SourceError(f"{path} is a pipe, a socket or a device; only files and folders are read: copy it to a file")


def check_bands(spec: SceneSpec, bands: tuple[int, ...], n_stored: int) -> None:
    """Refuse band numbers that the file does not have, and files with too many."""
    if n_stored > MAX_BANDS:
        raise SourceError(
            f"{spec.uri} declares {n_stored} bands; at most {MAX_BANDS} are read; extract some, for example with gdal_translate -b 1"
        )
    beyond = [band for band in bands if band > n_stored]
    if beyond:
        raise SourceError(
            f"band {beyond[0]} of {spec.uri} was asked for; it has bands 1 to {n_stored}; choose others, for example --bands 1"
        )


def check_inside(info: SceneInfo, window: Window) -> None:
    """Refuse windows that reach outside the scene."""
    if not info.window.contains(window):
        raise WindowError(
            f"{window} was asked for; it must lie inside the scene of {info.height} x {info.width} px; clip "
            "it first, or use "
            "read_reflected"
        )


def where_valid(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Return (height, width) bool: False where all of ``pixels`` (bands, height, width) equal ``nodata``.

    One band that happens to equal the value, such as a true black in red, does not make a pixel invalid. NaN
    equals NaN here.
    """
    if nodata is None or (pixels.dtype.kind in "iu" and not _fits(nodata, pixels.dtype)):
        return np.ones(pixels.shape[1:], dtype=np.bool_)
    if math.isnan(nodata):
        numbers: NDArray[np.bool_] = np.any(~np.isnan(pixels), axis=0)
        return numbers
    # A nodata value written as text, such as -3.4e38, meets its pixels only after rounding to their type.
    with np.errstate(over="ignore"):
        value = pixels.dtype.type(nodata)
    valid: NDArray[np.bool_] = np.any(pixels != value, axis=0)
    return valid


def _fits(value: float, dtype: np.dtype[Any]) -> bool:
    """Tell whether an integer type can hold ``value`` at all."""
    limits = np.iinfo(dtype)
    return math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max
