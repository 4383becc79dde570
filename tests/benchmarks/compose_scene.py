"""Make a large scene out of small ones: real texture of any size, in memory that does not grow with it.

python tests/benchmarks/compose_scene.py examples/dubai-tile2.tif big.tif 8192 4096      (mirrored copies; width, height)
python tests/benchmarks/compose_scene.py /work/shared/data/dubai big.tif 8192 4096       (pieces of all tiles of the folder)
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window as RasterioWindow

from pipeline.scene import SceneSpec, open_scene, read_reflected
from pipeline.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRIP_PX = 1024
PIECE_PX = 1024
"""Side of the pieces that a mosaic is laid out of; no multiple of it is a period of the scene."""
MOST_STEP = 16
"""What an edge counts for as detail at most."""
PARTS_PER_SIDE = 3
"""A dubai tile is a seamless grid of so many images on each side."""


def compose(source: Path, dest: Path, *, height: int, width: int) -> None:
    """Write ``dest``, a tiled GeoTIFF of ``height`` x ``width`` px, from mirrored copies of ``source``."""
    with open_scene(SceneSpec(uri=str(source))) as scene:
        profile = {"count": scene.info.n_bands, "dtype": scene.info.dtype, "height": height, "width": width}
        with _create(dest, profile) as target:
            for row in range(0, height, STRIP_PX):
                strip = Window.from_bounds(rows=(row, min(row + STRIP_PX, height)), cols=(0, width))
                place = RasterioWindow(0, row, width, strip.height)
                target.write(read_reflected(scene, strip).pixels, window=place)


def compose_mosaic(folder: Path, dest: Path, *, height: int, width: int, seed: int = 0) -> None:
    """Write ``dest``, a tiled GeoTIFF of RGB, from pieces of all dubai tiles in ``folder``: from random places, turned and mirrored."""
    mosaics = [read_tile(tile) for tile in sorted(folder.glob("tile*"))]
    if not mosaics:
        raise SystemExit(f"{folder} holds no folders tile*; give the folder of the dubai tiles")
    rng = np.random.default_rng(seed)
    shares = np.array([mosaic[0].size for mosaic in mosaics], float)
    with _create(dest, {"count": 3, "dtype": "uint8", "height": height, "width": width}) as target:
        for row in range(0, height, PIECE_PX):
            for col in range(0, width, PIECE_PX):
                mosaic = mosaics[rng.choice(len(mosaics), p=shares / shares.sum())]
                piece = _random_piece(mosaic, rng)[:, : height - row, : width - col]
                target.write(piece, window=RasterioWindow(col, row, piece.shape[2], piece.shape[1]))


def cut(source: Path, dest: Path, place: Window) -> None:
    """Write ``dest``, a tiled GeoTIFF of the pixels of ``source`` within ``place``."""
    part = RasterioWindow(place.col_off, place.row_off, place.width, place.height)
    with rasterio.open(source) as scene:
        profile = {"count": scene.count, "dtype": scene.dtypes[0], "height": place.height, "width": place.width}
        with _create(dest, profile) as target:
            target.write(scene.read(window=part))


def busiest(source: Path, side: int) -> Window:
    """Return the square of ``side`` px, of those that the scene is cut into, with the most detail: differences of neighbours in a row."""
    detail = {}
    with rasterio.open(source) as scene:
        for row in range(0, scene.height - side + 1, side):
            for col in range(0, scene.width - side + 1, side):
                pixels = scene.read(window=RasterioWindow(col, row, side, side)).astype(np.int16)
                steps = np.minimum(np.abs(np.diff(pixels, axis=2)), MOST_STEP)
                detail[Window(row_off=row, col_off=col, height=side, width=side)] = float(steps.mean())
    return max(detail, key=detail.__getitem__)


def read_tile(tile: Path) -> NDArray[np.uint8]:
    """Return a dubai tile, its nine images side by side: (3, height, width). They may differ by a pixel, which is cut off."""
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((tile / "images").glob("*.jpg"))]
    if len(images) != PARTS_PER_SIDE**2:
        raise SystemExit(f"{tile}/images has {len(images)} images; {PARTS_PER_SIDE**2} are expected")
    height, width = (min(image.shape[axis] for image in images) for axis in (0, 1))
    cut = [image[:height, :width] for image in images]
    rows = [np.concatenate(cut[i : i + PARTS_PER_SIDE], axis=1) for i in range(0, len(cut), PARTS_PER_SIDE)]
    return np.ascontiguousarray(np.concatenate(rows).transpose(2, 0, 1))


def _random_piece(mosaic: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    row, col = (rng.integers(size - PIECE_PX + 1) for size in mosaic.shape[1:])
    piece = np.rot90(mosaic[:, row : row + PIECE_PX, col : col + PIECE_PX], rng.integers(4), axes=(1, 2))
    return np.ascontiguousarray(piece[:, :, ::-1] if rng.integers(2) else piece)


def _create(dest: Path, profile: dict[str, Any]) -> Any:
    layout = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "lzw",
        "bigtiff": "if_safer",
        "num_threads": "all_cpus",
    }
    return rasterio.open(dest, "w", driver="GTiff", **profile, **layout)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    source, dest = Path(sys.argv[1]), Path(sys.argv[2])
    make = compose_mosaic if source.is_dir() else compose
    make(source, dest, width=int(sys.argv[3]), height=int(sys.argv[4]))
