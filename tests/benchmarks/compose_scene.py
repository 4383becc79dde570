"""Make a large scene out of a small one, mirrored over a canvas: real texture of any size.

python tests/benchmarks/compose_scene.py examples/dubai-tile2.tif big.tif 8192 4096
"""

from __future__ import annotations

import sys
from pathlib import Path

import rasterio
from rasterio.windows import Window as RasterioWindow

from pipeline.scene import SceneSpec, open_scene, read_reflected
from pipeline.window import Window

STRIP_PX = 1024


def compose(source: Path, dest: Path, *, height: int, width: int) -> None:
    """Write ``dest``, a tiled GeoTIFF of ``height`` x ``width`` px, from mirrored copies of ``source``."""
    with open_scene(SceneSpec(uri=str(source))) as scene:
        profile = {"driver": "GTiff", "count": scene.info.n_bands, "dtype": scene.info.dtype, "height": height, "width": width}
        layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "lzw", "bigtiff": "if_safer"}
        with rasterio.open(dest, "w", **profile, **layout) as target:
            for row in range(0, height, STRIP_PX):
                strip = Window.from_bounds(rows=(row, min(row + STRIP_PX, height)), cols=(0, width))
                place = RasterioWindow(0, row, width, strip.height)
                target.write(read_reflected(scene, strip).pixels, window=place)


if __name__ == "__main__":
    compose(Path(sys.argv[1]), Path(sys.argv[2]), width=int(sys.argv[3]), height=int(sys.argv[4]))
