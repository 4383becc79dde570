"""What does a VRT say? Which rectangles of which files lie where; everything else that a VRT can say is refused.

A VRT is a text that makes GDAL open other files: anything that it can open, anywhere, with options. So GDAL never sees one. The text is
parsed here, and only plain mosaics of GeoTIFF, PNG, JPEG and JPEG 2000 files in the VRT's own folder are let through: what
`gdalbuildvrt` makes of files of one kind. The sources are opened by `pipeline.gdal_scene` like any other scene.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from pipeline.errors import SourceError
from pipeline.georef import Georef, wkt_of_code
from pipeline.scene_info import MAX_BANDS
from pipeline.window import Window

if TYPE_CHECKING:
    from pathlib import Path
    from xml.etree.ElementTree import Element

DTYPES = {
    "Byte": "uint8",
    **{name: name.lower() for name in ("Int8", "UInt16", "Int16", "UInt32", "Int32", "Float32", "Float64")},
}
"""numpy's names of GDAL's pixel types."""

_ROOT = b"<VRTDataset"
_MAX_BYTES = 64 * 2**20
_KNOWN = {
    "VRTDataset": {"SRS", "GeoTransform", "Metadata", "OverviewList", "VRTRasterBand"},
    "VRTRasterBand": {
        *("NoDataValue", "HideNoDataValue", "ColorInterp", "Description", "Metadata", "Histograms", "UnitType"),
        *("SimpleSource", "ComplexSource"),
    },
    "source": {"SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA"},
}
_PREFIX = re.compile(r"[A-Za-z][\w.+-]+:")


@dataclass(frozen=True, slots=True, kw_only=True)
class VrtPiece:
    """One rectangle of one band of one file."""

    path: Path
    """The file, without links."""
    band: int
    """Its band, counted from 1."""
    source: Window
    """The rectangle in the file."""
    target: Window
    """Where it lies in the mosaic; of the same size."""
    nodata: float | None
    """Pixels of the file with this value are not copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VrtBand:
    """One band of the mosaic."""

    dtype: str
    """numpy's name of the pixel type."""
    nodata: float | None
    """Value of pixels that no piece covers, and of those without data."""
    colour: str
    """``Red``, ``Alpha`` and so on; empty where it is not said."""
    description: str
    """Its name; empty where it has none."""
    pieces: tuple[VrtPiece, ...]
    """What it is made of; later ones lie above earlier ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vrt:
    """A mosaic."""

    height: int
    """Rows, px."""
    width: int
    """Columns, px."""
    georef: Georef
    """CRS and transform."""
    bands: tuple[VrtBand, ...]
    """The bands."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is made of, each once."""
        return tuple(dict.fromkeys(piece.path for band in self.bands for piece in band.pieces))


def is_vrt(path: Path) -> bool:
    """Tell whether a file begins as a VRT does, whatever its name."""
    with path.open("rb") as file:
        return _ROOT in file.read(1024).partition(b"\0")[0]


def read_vrt(path: Path) -> Vrt:
    """Parse a VRT and check every word of it; no source is opened.

    Raises
    ------
    SourceError
        It is no VRT, or is more than a plain mosaic of files in its own folder.
    """
    root = _parse(path)
    try:
        return _vrt(root, path)
    except (ValueError, OverflowError) as error:  # a number that is none; WindowError and SpecError, too
        raise _refusal(path, str(error)) from error


def _parse(path: Path) -> Element:
    n_bytes = path.stat().st_size
    if n_bytes > _MAX_BYTES:
        raise SourceError(f"{path} has {n_bytes} bytes; a VRT of at most {_MAX_BYTES} bytes is read: split it")
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise _refusal(path, "it declares entities, which can name files or grow without end")
    try:
        # Read as UTF-8 whatever it says, so that nothing could hide from the test above. Without entities, XML has no other traps.
        root = ET.fromstring(content, ET.XMLParser(encoding="utf-8"))  # noqa: S314
    except (ET.ParseError, ValueError) as error:
        raise _refusal(path, f"it is no XML: {error}") from error
    if root.tag != "VRTDataset":
        raise _refusal(path, f"its root is {root.tag[:80]!r}")
    return root


def _vrt(root: Element, path: Path) -> Vrt:
    _check_words(path, root, "VRTDataset")
    height, width = int(root.attrib.get("rasterYSize", 0)), int(root.attrib.get("rasterXSize", 0))
    bands = root.findall("VRTRasterBand")
    if not 1 <= len(bands) <= MAX_BANDS:
        raise _refusal(path, f"it has {len(bands)} bands; 1 to {MAX_BANDS} are read")
    whole = Window.of_shape((height, width))
    resolved: dict[str, Path] = {}
    return Vrt(
        height=height,
        width=width,
        georef=_georef(root),
        bands=tuple(_band(band, path, whole, resolved) for band in bands),
    )


def _georef(root: Element) -> Georef:
    text, srs = root.findtext("GeoTransform"), (root.findtext("SRS") or "").strip()
    transform = None
    if text is not None:
        c, a, b, f, d, e = (float(number) for number in text.split(","))
        transform = (a, b, c, d, e, f)
    return Georef(crs_wkt=wkt_of_code(srs) if srs else None, transform=transform)


def _band(band: Element, path: Path, whole: Window, resolved: dict[str, Path]) -> VrtBand:
    _check_words(path, band, "VRTRasterBand")
    dtype = band.attrib.get("dataType", "Byte")
    if dtype not in DTYPES:
        raise _refusal(path, f"it has pixels of type {dtype[:40]!r}; {', '.join(DTYPES)} are read")
    sources = [item for item in band if item.tag in {"SimpleSource", "ComplexSource"}]
    nodata = band.findtext("NoDataValue")
    return VrtBand(
        dtype=DTYPES[dtype],
        nodata=None if nodata is None else float(nodata),
        colour=band.findtext("ColorInterp") or "",
        description=band.findtext("Description") or "",
        pieces=tuple(_piece(source, path, whole, resolved) for source in sources),
    )


def _piece(source: Element, path: Path, whole: Window, resolved: dict[str, Path]) -> VrtPiece:
    _check_words(path, source, "source")
    name = source.find("SourceFilename")
    if name is None or not name.text:
        raise _refusal(path, "one of its sources has no SourceFilename")
    if name.attrib.get("relativeToVRT", "0") != "1" and not name.text.startswith("/"):
        raise _refusal(path, f"it names {name.text[:80]!r}, relative to whatever folder one happens to be in")
    if name.text not in resolved:
        resolved[name.text] = _source_path(path, name.text)
    rect, target = (_rect(source, tag) for tag in ("SrcRect", "DstRect"))
    if rect.shape != target.shape:
        raise _refusal(path, f"it resamples {name.text} from {rect.shape} to {target.shape} px")
    if not whole.contains(target):
        raise _refusal(path, f"it puts {name.text} at {target}, which reaches out of its {whole.height} x {whole.width} px")
    nodata = source.findtext("NODATA")
    band_number = int(source.findtext("SourceBand") or 1)
    if not 1 <= band_number <= MAX_BANDS:
        raise _refusal(path, f"it takes band {band_number} of {name.text}")
    return VrtPiece(
        path=resolved[name.text],
        band=band_number,
        source=rect,
        target=target,
        nodata=None if nodata is None else float(nodata),
    )


def _rect(source: Element, tag: str) -> Window:
    element = source.find(tag)
    if element is None:
        raise ValueError(f"a source has no {tag}")
    numbers = [float(element.attrib.get(name, "nan")) for name in ("xOff", "yOff", "xSize", "ySize")]
    if not all(math.isfinite(number) and number == round(number) and number >= 0 for number in numbers):
        raise ValueError(f"a {tag} of {numbers} is between pixels")
    col, row, width, height = map(int, numbers)
    return Window(row_off=row, col_off=col, height=height, width=width)


def _source_path(path: Path, text: str) -> Path:
    """Return the file that a source names, without links; SourceError unless it lies in the folder of the VRT or below."""
    given = text.replace("\\", "/")
    if given.startswith("/vsi") or "://" in given or _PREFIX.match(given) or "\0" in given or given.lstrip().startswith("<"):
        raise _refusal(path, f"it names {text[:80]!r}, which is no plain path")
    folder = path.resolve().parent
    found = (folder / given).resolve()
    if not found.is_relative_to(folder):
        raise _refusal(path, f"it names {text[:80]!r}, which lies outside of its folder {folder}")
    return found


def _check_words(path: Path, element: Element, kind: str) -> None:
    """Refuse what is not in the short list: raw bands, derived bands, warps, pixel functions, options, masks and all that is to come."""
    strange = sorted({item.tag for item in element} - _KNOWN[kind])
    if strange or "subClass" in element.attrib:
        raise _refusal(path, f"it holds {', '.join(strange) or 'subClass ' + element.attrib['subClass']}"[:200])


def _refusal(path: Path, reason: str) -> SourceError:
    return SourceError(
        f"{path} is a VRT that is not read: {reason}; a plain mosaic of GeoTIFF, PNG, JPEG or JPEG 2000 files in its own folder is "
        "expected: convert it with gdal_translate -of COG"
    )
