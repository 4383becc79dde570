"""Which files does a block own, and which pixel does a file begin with? The names that zarr gives to chunks, computed.

::

    0/labels/c/ROW/COL     0/confidence/c/ROW/COL     0/probabilities/c/CLASS/ROW/COL

ROW and COL count chunks, or shards where the store has them; a shard of the probabilities holds all classes, and its CLASS is 0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.store_layout import StoreLayout
    from pipeline.window import Window

_NAME = re.compile(r"0/(?P<array>\w+)/c/(?:(?P<plane>0|[1-9]\d*)/)?(?P<row>0|[1-9]\d*)/(?P<col>0|[1-9]\d*)", re.ASCII)


def owned_files(layout: StoreLayout, window: Window) -> list[str]:
    """List the files that a block with this write window writes, sorted, as paths relative to the store's root."""
    unit = layout.write_unit
    return sorted(
        name_file(layout, array, row=row, col=col, plane=plane)
        for array in layout.array_names
        for plane in range(_n_planes(layout, array))
        for row in range(window.row_off, window.row_end, unit)
        for col in range(window.col_off, window.col_end, unit)
    )


def name_file(layout: StoreLayout, array: str, *, row: int, col: int, plane: int = 0) -> str:
    """Return the file that holds the pixel (``row``, ``col``) of an array; ``plane`` is the class where each has files of its own."""
    planes = f"{plane}/" if array == "probabilities" else ""
    return f"0/{array}/c/{planes}{row // layout.write_unit}/{col // layout.write_unit}"


def first_pixel(layout: StoreLayout, key: str) -> tuple[int, int] | None:
    """Return (row, column) of the first pixel in the file ``key``; None where no block writes a file of that name."""
    found = _NAME.fullmatch(key)
    if found is None or found["array"] not in layout.array_names:
        return None
    row, col = int(found["row"]) * layout.write_unit, int(found["col"]) * layout.write_unit
    same = name_file(layout, found["array"], row=row, col=col, plane=int(found["plane"] or 0)) == key
    inside = row < layout.height and col < layout.width and int(found["plane"] or 0) < _n_planes(layout, found["array"])
    return (row, col) if same and inside else None


def _n_planes(layout: StoreLayout, array: str) -> int:
    return len(layout.classes) if array == "probabilities" and layout.shard is None else 1
