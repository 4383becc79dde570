"""How do scenes that come in parts become one? Side by side in rows and columns, read through the parts that a window touches.

::

    mosaic = [2, 3]      a b c      in order of the files' names; parts of a row have the same height, those of a column the same width
                         d e f
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline.errors import SourceError
from pipeline.scene_info import Tile, check_inside
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from pipeline.scene import Scene, SceneInfo
    from pipeline.scene_info import MaskKind
    from workflows.label_source import LabelSource


class MosaicScene:
    """Scenes as one; it lies where the first one does."""

    def __init__(self, parts: Sequence[Scene], *, mosaic: tuple[int, int], name: str) -> None:
        """Join ``parts`` in row order on ``mosaic`` (rows, columns); SourceError, which calls them ``name``, where they do not fit."""
        self._parts = tuple(parts)
        self.places = _place([part.info.shape for part in parts], mosaic, name)
        kinds = {(part.info.dtype, len(part.bands)) for part in parts}
        if len(kinds) > 1:
            found = ", ".join(f"{n} bands of {dtype}" for dtype, n in sorted(kinds))
            raise SourceError(f"the parts of {name} have {found}; all parts of a mosaic need the same: convert some")
        first, last = parts[0].info, self.places[-1]
        kind: MaskKind = "mask" if any(part.info.mask_kind != "none" for part in parts) else "none"
        self._info = replace(first, height=last.row_end, width=last.col_end, mask_kind=kind, nodata=None, random_access=True)

    @property
    def info(self) -> SceneInfo:
        """What the first part says, with the size of all."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """The selected bands of every part, counted from 1."""
        return self._parts[0].bands

    def read(self, window: Window) -> Tile:
        """Read a window inside the mosaic; WindowError outside, SourceError where a part is damaged."""
        check_inside(self._info, window)
        pixels = np.empty((len(self.bands), *window.shape), self._info.dtype)
        valid = np.empty(window.shape, np.bool_)
        for part, place in zip(self._parts, self.places, strict=True):
            common = place.intersect(window)
            if common is not None:
                tile = part.read(common.relative_to(place))
                at = common.relative_to(window).to_slices()
                pixels[:, *at], valid[at] = tile.pixels, tile.valid
        return Tile(window=window, pixels=pixels, valid=valid)

    def close(self) -> None:
        """Give back all file handles."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class MosaicLabels:
    """The labels of the parts as one."""

    def __init__(self, parts: Sequence[LabelSource], places: Sequence[Window]) -> None:
        """Join ``parts``, each of which covers its place of ``places``."""
        self._parts, self._places = tuple(parts), tuple(places)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the mosaic."""
        return self._places[-1].row_end, self._places[-1].col_end

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return (height, width) class ids of a window inside the mosaic, 255: no label."""
        labels = np.empty(window.shape, np.uint8)
        for part, place in zip(self._parts, self._places, strict=True):
            common = place.intersect(window)
            if common is not None:
                labels[common.relative_to(window).to_slices()] = part.read(common.relative_to(place))
        return labels

    def close(self) -> None:
        """Give back all that is open."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _place(shapes: Sequence[tuple[int, int]], mosaic: tuple[int, int], name: str) -> tuple[Window, ...]:
    """Return where each part lies."""
    rows, columns = mosaic
    heights, widths = [shape[0] for shape in shapes[::columns]], [shape[1] for shape in shapes[:columns]]
    if list(shapes) != [(height, width) for height in heights for width in widths]:
        sizes = ", ".join(f"{height} x {width}" for height, width in shapes)
        raise SourceError(
            f"the parts of {name} do not form a {rows} x {columns} mosaic: in row order they have {sizes} px; one height a row and one "
            "width a column are expected: correct mosaic, or the names of the files, which give the order"
        )
    tops, lefts = np.cumsum([0, *heights]).tolist(), np.cumsum([0, *widths]).tolist()
    return tuple(
        Window.from_bounds(rows=(tops[i], tops[i + 1]), cols=(lefts[j], lefts[j + 1]))
        for i in range(rows)
        for j in range(columns)
    )
