"""Which places failed? The quarantined blocks, and what the scene did not give, as polygons to look at over the scene."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.durable_file import replace_durably
from pipeline.errors import StoreError
from pipeline.grid import Blocks
from workflows.run_state import remove_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.window import Window
    from workflows.events import BlockFailure
    from workflows.prepare import Prepared


def write_failures(path: Path, prepared: Prepared, failures: list[BlockFailure], unreadable: Sequence[Window] = ()) -> None:
    """Write one GeoJSON polygon per failed block and per unreadable place; no file where there is neither.

    Coordinates are in the CRS of the scene, or in pixels where it has none.
    """
    if not failures and not unreadable:
        remove_state(path)
        return
    blocks = Blocks(shape=prepared.scene.shape, block_px=prepared.spec.grid.block_px)
    collection: dict[str, Any] = {
        "type": "FeatureCollection",
        "features": [
            *(
                _feature(blocks.window(item.block), prepared, _describe(item))
                for item in sorted(failures, key=lambda item: item.block)
            ),
            *(_feature(place, prepared, {"kind": "unreadable", **asdict(place)}) for place in unreadable),
        ],
    }
    epsg = prepared.scene.georef.epsg
    if epsg is not None:
        collection["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{epsg}"}}
    try:
        replace_durably(path, (json.dumps(collection, indent=1) + "\n").encode())
    except OSError as cause:
        raise StoreError(f"the list of failed blocks {path} cannot be written: {cause}; free some space and run again") from cause


def _describe(failure: BlockFailure) -> dict[str, Any]:
    row, col = failure.block
    return {"kind": "failed", "row": row, "col": col, "error": failure.error, "attempts": failure.attempts}


def _feature(window: Window, prepared: Prepared, properties: dict[str, Any]) -> dict[str, Any]:
    outline = {"type": "Polygon", "coordinates": [_outline(window, prepared)]}
    return {"type": "Feature", "properties": properties, "geometry": outline}


def _outline(window: Window, prepared: Prepared) -> list[tuple[float, float]]:
    a, b, c, d, e, f = prepared.scene.georef.transform or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    rows, cols = (window.row_off, window.row_end), (window.col_off, window.col_end)
    corners = [(cols[0], rows[0]), (cols[1], rows[0]), (cols[1], rows[1]), (cols[0], rows[1]), (cols[0], rows[0])]
    return [(a * x + b * y + c, d * x + e * y + f) for x, y in corners]
