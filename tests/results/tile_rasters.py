"""What is a labelled tile of the `dubai` data, whole? One GeoTIFF of its pixels and one of its class ids, made from its nine parts.

`atrous segment` and `atrous evaluate` take rasters; the data is there in parts of 3 x 3, and labels are painted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio

from pipeline.network.spec import ClassSpec
from pipeline.window import Window
from workflows.label_spec import IGNORED
from workflows.training_scenes import DataSpec, SceneEntry, open_training_scenes

if TYPE_CHECKING:
    from numpy.typing import NDArray

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
CLASSES = tuple(
    ClassSpec(name=name, color=color)
    for name, color in (
        ("building", "#3c1098"),
        ("land", "#8429f6"),
        ("road", "#6ec1e4"),
        ("vegetation", "#fedd3a"),
        ("water", "#e2a929"),
    )
)
IGNORED_COLORS = ("#9b9b9b", "#000000")


def tile_entry(data: Path, number: int) -> SceneEntry:
    """Return tile ``number`` as training reads it."""
    folder = data / "dubai" / f"tile{number}"
    return SceneEntry(name=f"tile{number}", image=folder / "images" / "*.jpg", label=folder / "masks" / "*.png", mosaic=(3, 3))


def write_tile(data: Path, number: int, folder: Path) -> tuple[Path, Path]:
    """Return GeoTIFFs of the pixels and of the class ids of a tile, 255 where there is no label; made where they are not there."""
    image, labels = folder / f"tile{number}.tif", folder / f"tile{number}-labels.tif"
    if not labels.exists():
        folder.mkdir(parents=True, exist_ok=True)
        spec = DataSpec(
            classes=tuple(one.name for one in CLASSES),
            colors=tuple(one.color for one in CLASSES),
            ignored_colors=IGNORED_COLORS,
            bands=("red", "green", "blue"),
        )
        with open_training_scenes((tile_entry(data, number),), spec)[0] as scene:
            whole = scene.read(Window.of_shape(scene.shape))
        _write(image, whole.pixels.astype(np.uint8), photometric="rgb")
        _write(labels, whole.labels[np.newaxis], nodata=IGNORED)
    return image, labels


def _write(path: Path, pixels: NDArray[np.uint8], **options: Any) -> None:
    bands, height, width = pixels.shape
    partial = path.with_suffix(".partial")
    with rasterio.open(
        partial,
        "w",
        driver="GTiff",
        count=bands,
        height=height,
        width=width,
        dtype="uint8",
        tiled=True,
        compress="deflate",
        **options,
    ) as file:
        file.write(pixels)
    partial.replace(path)
