"""How is a BMP read? Its rows lie in the file as they are, so a window is a slice of the mapped file.

GDAL does not know the later headers of the format (BITMAPV4, BITMAPV5), which most programs write today. Pillow reads them all, and tells
where the rows begin, how long they are, and which one is first; numpy maps them.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile

from pipeline.errors import SourceError
from pipeline.georef import Georef
from pipeline.scene_info import SceneInfo, SceneSpec, Tile, check_bands, check_inside, check_size, where_valid

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from pipeline.window import Window

_CHANNELS = {"L": (0,), "BGR": (2, 1, 0), "BGRX": (2, 1, 0)}
"""Where the bytes of a pixel hold gray, or red, green and blue, by Pillow's name of their order."""


class BmpScene:
    """An uncompressed BMP with 8 (gray), 24 or 32 bits a pixel as a scene."""

    def __init__(
        self, rows: NDArray[np.uint8], info: SceneInfo, bands: tuple[int, ...], channels: tuple[int, ...], *, first_row: int = 0
    ) -> None:
        """Show ``rows`` from ``first_row`` of the scene on; a file that was cut short lacks others."""
        self._rows = rows
        self._first_row = first_row
        self._info = info
        self._bands = bands
        self._picked = [channels[band - 1] for band in bands]

    @property
    def info(self) -> SceneInfo:
        """What the header says."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """The selected bands, counted from 1."""
        return self._bands

    def read(self, window: Window) -> Tile:
        """Read a window that lies inside the scene; WindowError outside, SourceError where the file was cut short."""
        check_inside(self._info, window)
        if not self._first_row <= window.row_off < window.row_end <= self._first_row + len(self._rows):
            raise SourceError(f"{window} cannot be read: the file ends before these rows; copy it again")
        rows, cols = replace(window, row_off=window.row_off - self._first_row).to_slices()
        stored = self._rows[rows, cols, self._picked]
        pixels = np.ascontiguousarray(np.moveaxis(stored, -1, 0))
        return Tile(window=window, pixels=pixels, valid=where_valid(pixels, self._info.nodata))

    def close(self) -> None:
        """Let go of the mapped file."""
        self._rows = np.empty((0, 0, 0), np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def is_bmp(path: Path) -> bool:
    """Tell whether a file begins as a BMP does."""
    with path.open("rb") as file:
        return file.read(2) == b"BM"


def open_bmp_scene(spec: SceneSpec) -> BmpScene:
    """Open the file of ``spec``; SourceError where it is compressed, has a palette of colours, is cut short or damaged."""
    (width, height), (order, start, row_bytes, direction) = _header(spec)
    check_size(spec, height, width)
    channels = _CHANNELS[order]
    bands = spec.bands or tuple(range(1, len(channels) + 1))
    check_bands(spec, bands, len(channels))
    n_bytes = Path(spec.uri).stat().st_size
    row_bytes = row_bytes or -(-width * len(order) // 4) * 4
    end = start + row_bytes * height
    if n_bytes < end and spec.on_read_error == "fail":
        raise SourceError(
            f"{spec.uri} is cut short: its pixels should end at byte {end}, the file has {n_bytes} bytes; copy it again"
        )
    n_there = min(height, max(0, n_bytes - start) // row_bytes)
    mapped = np.memmap(spec.uri, np.uint8, mode="r", offset=start, shape=(n_there, row_bytes)) if n_there else b""
    rows = np.ndarray((n_there, width, len(order)), np.uint8, buffer=mapped, strides=(row_bytes, len(order), 1))[::direction]
    info = _info(spec, height=height, width=width, n_bands=len(channels))
    return BmpScene(rows, info, bands, channels, first_row=height - n_there if direction < 0 else 0)


def _header(spec: SceneSpec) -> tuple[tuple[int, int], tuple[str, int, int, int]]:
    """Return (width, height), and the order of a pixel's bytes, the first row's offset, a row's bytes and the direction of the rows."""
    try:
        with BmpImageFile(spec.uri) as image:  # not Image.open, which warns of large images: no pixel is decoded here
            codec, _, start, layout = image.tile[0]
            size, palette = image.size, image.mode == "P"
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, struct.error) as error:
        raise SourceError(f"{spec.uri} does not open: {error}; it is no BMP, or is damaged: copy or download it again") from error
    if codec != "raw" or palette or not isinstance(layout, tuple) or layout[0] not in _CHANNELS:
        raise SourceError(
            f"{spec.uri} is a BMP with {'a palette' if palette else f'pixels of the form {codec} {layout}'}; uncompressed ones with gray, "
            "or with 24 or 32 bits a pixel, are read: convert it, for example to PNG"
        )
    return size, (layout[0], int(start), int(layout[1]), int(layout[2]))


def _info(spec: SceneSpec, *, height: int, width: int, n_bands: int) -> SceneInfo:
    return SceneInfo(
        driver="BMP",
        height=height,
        width=width,
        n_bands=n_bands,
        dtype="uint8",
        nodata=spec.nodata,
        mask_kind="none" if spec.nodata is None else "value",
        georef=Georef(),
        block_shape=(1, width),
        random_access=True,
        band_names=("gray",) if n_bands == 1 else ("red", "green", "blue"),
    )
