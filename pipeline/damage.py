"""Is a raster file cut short? Found when it is opened, without decoding a pixel.

The last bytes of a PNG or JPEG and the block table of a GeoTIFF tell. GDAL itself reads a PNG without its end
as zeros, and says nothing about a GeoTIFF that lacks its last blocks until somebody reads them, which may be
hours into a run.
"""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rasterio.io import DatasetReader

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"


def check_complete(uri: str, reader: DatasetReader) -> None:
    """Raise SourceError where the open file ends before its pixels do (GeoTIFF, PNG, JPEG)."""
    if reader.driver == "GTiff":
        _check_tiff(uri, reader)
    elif reader.driver == "PNG":
        _check_end(uri, _PNG_END, "the IEND chunk that closes a PNG")
    elif reader.driver == "JPEG":
        _check_end(uri, _JPEG_END, "the end-of-image marker (FF D9) that closes a JPEG")


def _check_tiff(uri: str, reader: DatasetReader) -> None:
    """Compare the byte range of every block with the file's size; about 2 us a block."""
    n_bytes = Path(uri).stat().st_size
    for band, row, col in _tiff_blocks(reader):
        offset = reader.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
        if offset is None:  # a sparse block: left out on purpose, it reads as nodata
            continue
        size = reader.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
        end = int(offset) + int(size or 0)
        if end > n_bytes:
            raise SourceError(
                f"{uri} is cut short: its block in column {col}, row {row} of band {band} should end at "
                f"byte {end}, the file has "
                f"{n_bytes} bytes; copy or download it again"
            )


def _tiff_blocks(reader: DatasetReader) -> Iterator[tuple[int, int, int]]:
    """Return (band, block row, block column) of every block; interleaved bands share their blocks."""
    rows, cols = reader.block_shapes[0]
    shared = reader.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL"
    return itertools.product(
        [1] if shared else reader.indexes,
        range(-(-reader.height // rows)),
        range(-(-reader.width // cols)),
    )


def _check_end(uri: str, end: bytes, name: str) -> None:
    """Look backwards for the end marker, so that bytes which some cameras append do no harm."""
    with Path(uri).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.rfind(end, _jpeg_scan_start(data) if end == _JPEG_END else 0) < 0:
            raise SourceError(f"{uri} is cut short: it has {len(data)} bytes and lacks {name}; copy or download it again")


def _jpeg_scan_start(data: mmap.mmap) -> int:
    """Return the offset of the first scan: a preview before it may hold an end marker, pixels cannot."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position
