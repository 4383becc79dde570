"""Write the labels of the sample scene as polygons: `dubai-tile2-labels.gpkg`, from the masks of the data set that the scene is from.

    python examples/make_labels.py ../shared/data/dubai/tile2/masks

Coordinates are pixels of `dubai-tile2.tif` (x to the right, y down), since the scene has no CRS.
"""

from __future__ import annotations

import sys
from pathlib import Path

import geopandas
import numpy as np
from PIL import Image
from rasterio.features import shapes
from shapely.geometry import shape

COLORS = {"building": 0x3C1098, "land": 0x8429F6, "road": 0x6EC1E4, "vegetation": 0xFEDD3A, "water": 0xE2A929}


TOLERANCE_PX = 1.5
"""Outlines may be so far from the edges of pixels, as if drawn by hand; that makes the file a tenth as large."""


def main(masks: Path, out: Path) -> None:
    """Join the nine parts, and keep one polygon for every patch of a class."""
    parts = [np.asarray(Image.open(path).convert("RGB"), np.uint32) for path in sorted(masks.iterdir())]
    rows = [np.concatenate(parts[start : start + 3], axis=1) for start in (0, 3, 6)]
    pixels = np.concatenate(rows)
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    ids = np.full(packed.shape, 255, np.uint8)
    for index, color in enumerate(COLORS.values()):
        ids[packed == color] = index
    found = [(shape(outline).simplify(TOLERANCE_PX), int(index)) for outline, index in shapes(ids, mask=ids != 255)]
    names = list(COLORS)
    frame = geopandas.GeoDataFrame({"kind": [names[index] for _, index in found]}, geometry=[polygon for polygon, _ in found])
    out.unlink(missing_ok=True)
    frame.to_file(out, driver="GPKG")
    print(f"{len(frame)} polygons of {ids.shape[1]} x {ids.shape[0]} px: {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("dubai-tile2-labels.gpkg"))
