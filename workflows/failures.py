"""Which places failed? The quarantined blocks as polygons, to look at over the scene."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.durable_file import replace_durably
from pipeline.errors import StoreError
from pipeline.grid import Blocks

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.window import Window
    from workflows.events import BlockFailure
    from workflows.prepare import Prepared


def write_failures(path: Path, prepared: Prepared, failures: list[BlockFailure]) -> None:
    """Write one GeoJSON polygon per failed block, in the CRS of the scene (in pixels where it has none); no file without failures."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    blocks = Blocks(shape=prepared.scene.shape, block_px=prepared.spec.grid.block_px)
    collection: dict[str, Any] = {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"row": item.block[0], "col": item.block[1], "error": item.error, "attempts": item.attempts},
                "geometry": {"type": "Polygon", "coordinates": [_outline(blocks.window(item.block), prepared)]},
            }
            for item in sorted(failures, key=lambda item: item.block)
        ],
    }
    epsg = prepared.scene.georef.epsg
    if epsg is not None:
        collection["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{epsg}"}}
    try:
        replace_durably(path, (json.dumps(collection, indent=1) + "\n").encode())
    except OSError as cause:
        raise StoreError(f"the list of failed blocks {path} cannot be written: {cause}; free some space and run again") from cause


def _outline(window: Window, prepared: Prepared) -> list[tuple[float, float]]:
    a, b, c, d, e, f = prepared.scene.georef.transform or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    rows, cols = (window.row_off, window.row_end), (window.col_off, window.col_end)
    corners = [(cols[0], rows[0]), (cols[1], rows[0]), (cols[1], rows[1]), (cols[0], rows[1]), (cols[0], rows[0])]
    return [(a * x + b * y + c, d * x + e * y + f) for x, y in corners]
