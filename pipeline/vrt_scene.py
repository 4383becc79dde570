"""How is a VRT read? Piece by piece from the files that it names, each opened like a scene of its own.

`pipeline.vrt` says which rectangle of which file lies where. Where two pieces overlap, the later one lies above; where none lies, pixels
are without data if the VRT has a nodata value, and 0 if it has none, as GDAL reads them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.errors import SourceError
from pipeline.scene_info import (
    SceneInfo,
    SceneSpec,
    Tile,
    check_bands,
    check_dtype,
    check_inside,
    check_size,
    where_valid,
)
from pipeline.tolerant_scene import TolerantScene
from pipeline.vrt import read_vrt
from pipeline.window import Window, disjoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from numpy.typing import NDArray

    from pipeline.scene_info import MaskKind, Scene
    from pipeline.vrt import Vrt, VrtBand, VrtPiece

    Opener = Callable[[SceneSpec], Scene]

_OPEN_FILES = 64
_ALPHA = "Alpha"


class VrtScene:
    """A mosaic of raster files. For one thread."""

    def __init__(self, spec: SceneSpec, vrt: Vrt, info: SceneInfo, opener: Opener) -> None:
        self._spec, self._vrt, self._info, self._opener = spec, vrt, info, opener
        self._colours, self._alpha = _roles(spec, vrt)
        self._bands = spec.bands or self._colours
        self._pieces = _by_file(vrt)
        self._bands_of = {path: _used_bands(pieces) for path, pieces in self._pieces.items()}
        self._files: OrderedDict[Path, Scene] = OrderedDict()
        self._lost: set[Window] = set()

    @property
    def info(self) -> SceneInfo:
        """What the VRT and its first file say."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """The selected bands, counted from 1."""
        return self._bands

    @property
    def colours(self) -> tuple[int, ...]:
        """All bands, counted from 1, but the alpha band; as many as ``info.n_bands``."""
        return self._colours

    def read(self, window: Window) -> Tile:
        """Read a window that lies inside the scene.

        Raises
        ------
        WindowError
            The window reaches outside.
        SourceError
            A file is damaged there, and the spec says that this is an error.
        """
        check_inside(self._info, window)
        read: dict[tuple[Path, Window], Tile | None] = {}
        pixels = np.stack([self._read_band(band, window, read) for band in self._bands])
        alpha = None if self._alpha is None else self._read_band(self._alpha, window, read)
        valid = where_valid(pixels, self._info.nodata) if alpha is None else alpha != 0
        for place in self.unreadable(window):
            inside = place.relative_to(window).to_slices()
            pixels[:, *inside], valid[inside] = 0, False
        return Tile(window=window, pixels=pixels, valid=valid)

    def unreadable(self, window: Window) -> tuple[Window, ...]:
        """Return the lost places within ``window`` that were found so far: all of them, once it was read."""
        parts = (window.intersect(place) for place in self._lost)
        return disjoint(part for part in parts if part is not None)

    def close(self) -> None:
        """Give back the file handles."""
        while self._files:
            self._files.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read_band(self, number: int, window: Window, read: dict[tuple[Path, Window], Tile | None]) -> NDArray[Any]:
        """Return (height, width) of one band; ``read`` keeps what was read of a file, for its other bands."""
        band = self._vrt.bands[number - 1]
        pixels = np.full(window.shape, _background(band), band.dtype)
        for piece in band.pieces:
            wanted = window.intersect(piece.target)
            if wanted is None:
                continue
            source = _moved(wanted, piece.target, piece.source)
            if (piece.path, source) not in read:
                read[piece.path, source] = self._read_file(piece, source)
            tile = read[piece.path, source]
            if tile is not None:
                onto = pixels[wanted.relative_to(window).to_slices()]
                values = tile.pixels[self._bands_of[piece.path].index(piece.band)]
                np.copyto(onto, values, where=where_valid(values[np.newaxis], piece.nodata))
        return pixels

    def _read_file(self, piece: VrtPiece, source: Window) -> Tile | None:
        """Read the rectangle ``source`` of a piece's file; None where that does not open, and this is no error."""
        try:
            scene = self._file(piece.path)
        except SourceError:
            if self._spec.on_read_error == "fail":
                raise
            self._lost.add(piece.target)
            return None
        tile = scene.read(source)
        if isinstance(scene, TolerantScene):
            self._lost.update(_moved(place, piece.source, piece.target) for place in scene.unreadable(piece.source))
        return tile

    def _file(self, path: Path) -> Scene:
        """Return an open file; those that were used last are kept open."""
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        while len(self._files) >= _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        self._files[path] = _open_file(self._spec, path, self._pieces[path], self._opener)
        return self._files[path]


def open_vrt_scene(spec: SceneSpec, opener: Opener) -> VrtScene:
    """Open the VRT of ``spec``, whose files are opened by ``opener``; each is looked at once, so that a run does not begin in vain."""
    path = Path(spec.uri)
    vrt = read_vrt(path)
    check_size(spec, vrt.height, vrt.width)
    check_bands(spec, spec.bands or (), len(vrt.bands))
    infos = []
    for file, pieces in _by_file(vrt).items():
        try:
            with _open_file(spec, file, pieces, opener) as scene:
                infos.append(scene.info)
        except SourceError:
            if spec.on_read_error == "fail":
                raise
    return VrtScene(spec, vrt, _info(spec, vrt, infos), opener)


def _open_file(spec: SceneSpec, path: Path, pieces: list[tuple[str, VrtPiece]], opener: Opener) -> Scene:
    """Open a file of a mosaic with the bands that it is needed for, and check that its ``pieces`` lie in it."""
    scene = opener(
        SceneSpec(uri=str(path), bands=_used_bands(pieces), max_pixels=spec.max_pixels, on_read_error=spec.on_read_error)
    )
    info = scene.info
    for dtype, piece in pieces:
        if not info.window.contains(piece.source) or info.dtype != dtype:
            scene.close()
            raise SourceError(
                f"{spec.uri} takes {piece.source} of {dtype} from {path}, which has {info.height} x {info.width} px of {info.dtype}; "
                "both must agree: make the VRT again with gdalbuildvrt"
            )
    return scene


def _by_file(vrt: Vrt) -> dict[Path, list[tuple[str, VrtPiece]]]:
    """Return the pieces of every file, with the type of the band that they belong to."""
    pieces: dict[Path, list[tuple[str, VrtPiece]]] = {}
    for band in vrt.bands:
        for piece in band.pieces:
            pieces.setdefault(piece.path, []).append((band.dtype, piece))
    return pieces


def _used_bands(pieces: list[tuple[str, VrtPiece]]) -> tuple[int, ...]:
    return tuple(sorted({piece.band for _, piece in pieces}))


def _roles(spec: SceneSpec, vrt: Vrt) -> tuple[tuple[int, ...], int | None]:
    """Return the bands that are pixels, and the one that tells valid ones: alpha, unless it is asked for or another rule is stronger."""
    wanted = spec.bands or ()
    numbers = range(1, len(vrt.bands) + 1)
    alphas = [number for number in numbers if vrt.bands[number - 1].colour == _ALPHA and number not in wanted]
    colours = tuple(number for number in numbers if number not in alphas)
    if not colours:
        raise SourceError(f"{spec.uri} has no band but alpha; give a scene with pixels")
    return colours, alphas[0] if alphas and spec.nodata is None else None


def _info(spec: SceneSpec, vrt: Vrt, files: list[SceneInfo]) -> SceneInfo:
    colours, alpha = _roles(spec, vrt)
    first = vrt.bands[(spec.bands or colours)[0] - 1]
    check_dtype(spec.uri, first.dtype)
    others = {band.dtype for band in vrt.bands} - {first.dtype}
    if others:
        raise SourceError(f"{spec.uri} has bands of {first.dtype} and of {', '.join(sorted(others))}; all must have one type")
    if any(band.colour == "Palette" for band in vrt.bands):
        raise SourceError(
            f"{spec.uri} holds indices into a palette; colours are expected; convert it with gdal_translate -expand rgb"
        )
    nodata = spec.nodata if spec.nodata is not None else (first.nodata if alpha is None else None)
    kind: MaskKind = "alpha" if alpha is not None else "none" if nodata is None else "value"
    return SceneInfo(
        driver="VRT",
        height=vrt.height,
        width=vrt.width,
        n_bands=len(colours),
        dtype=first.dtype,
        nodata=nodata,
        mask_kind=kind,
        georef=vrt.georef,
        block_shape=files[0].block_shape if files else (1, vrt.width),
        random_access=all(info.random_access for info in files),
        band_names=tuple(_band_name(vrt.bands[number - 1], number) for number in colours),
    )


def _band_name(band: VrtBand, number: int) -> str:
    unnamed = band.colour.lower() in {"", "gray", "undefined"}
    return band.description or (f"band_{number}" if unnamed else band.colour.lower())


def _background(band: VrtBand) -> float:
    """Return what a pixel is that no piece covers: the value of the type that is nearest to nodata, else 0."""
    if band.nodata is None:
        return 0
    dtype = np.dtype(band.dtype)
    if dtype.kind == "f":
        return band.nodata
    limits = np.iinfo(dtype)
    return 0 if math.isnan(band.nodata) else int(min(max(band.nodata, limits.min), limits.max))


def _moved(window: Window, origin: Window, target: Window) -> Window:
    """Return ``window`` moved as ``origin`` is moved onto ``target``."""
    return Window(
        row_off=window.row_off - origin.row_off + target.row_off,
        col_off=window.col_off - origin.col_off + target.col_off,
        height=window.height,
        width=window.width,
    )
