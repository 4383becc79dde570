"""What does training see? Scenes with their labels in memory, and random windows of them.

::

    scene (bands, H, W)  --random place, scale, turn, colour-->  window (bands, S, S) float32
    labels (H, W) uint8  --same place, scale, turn------------>  labels (S, S) int64, 255 = ignored
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import torch
from PIL import Image, UnidentifiedImageError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from torch.nn import functional

from pipeline.errors import SourceError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

IGNORED = 255
"""Label of a pixel that is neither trained on nor counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCoding:
    """What the values of a label raster mean."""

    colors: tuple[tuple[int, int, int], ...] | None
    """RGB of class 0, 1, ...; None where the raster holds class ids itself."""
    ignored_colors: tuple[tuple[int, int, int], ...] = ()
    """RGB of pixels without a label."""
    n_classes: int
    """How many classes there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledScene:
    """An image and the class of each of its pixels."""

    name: str
    """What reports call it."""
    image: NDArray[Any]
    """(bands, height, width), as stored."""
    labels: NDArray[np.uint8]
    """(height, width), class ids, 255 = ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How much a training window may differ from the scene."""

    scale_range: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest zoom, drawn log-uniformly."""
    jitter: float = 0.2
    """Largest relative change of brightness, contrast and of each band's gain, 0 to 1."""

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise SpecError(f"scale_range is {self.scale_range}; give two zooms above 0, the smaller one first")
        if not 0 <= self.jitter < 1:
            raise SpecError(f"jitter is {self.jitter}; give 0 (none) or more, below 1")


def read_scene(
    name: str, images: Sequence[Path], labels: Sequence[Path], *, coding: LabelCoding, mosaic: tuple[int, int]
) -> LabelledScene:
    """Return the scene whose parts lie in row order on a ``mosaic`` of (rows, columns).

    Raises
    ------
    SourceError
        If a file cannot be read, has an unknown label, or the parts do not fit together.
    """
    parts = [_read_part(image, label, coding) for image, label in zip(images, labels, strict=True)]
    try:
        image = _join([part[0] for part in parts], mosaic)
        label = _join([part[1] for part in parts], mosaic)
    except ValueError as error:
        raise SourceError(f"the parts of {name} do not form a {mosaic[0]} x {mosaic[1]} mosaic ({error})") from error
    return LabelledScene(name=name, image=image, labels=label)


def read_image(path: Path) -> NDArray[Any]:
    """Return (bands, height, width) as stored; raises SourceError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                pixels: NDArray[Any] = dataset.read()
    except RasterioError as error:
        raise SourceError(f"{path} cannot be read as an image ({error}); give a raster that GDAL reads") from error
    return pixels


def count_bands(path: Path) -> int:
    """Return the number of bands of a raster; raises SourceError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return int(dataset.count)
    except RasterioError as error:
        raise SourceError(f"{path} cannot be read as an image ({error}); give a raster that GDAL reads") from error


def read_labels(path: Path, coding: LabelCoding) -> NDArray[np.uint8]:
    """Return (height, width) class ids, 255 = ignored; raises SourceError on a value that means nothing."""
    if coding.colors is None:
        return _check_ids(path, read_image(path), coding.n_classes)
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.uint32)
    except (OSError, UnidentifiedImageError) as error:
        raise SourceError(f"{path} cannot be read as a coloured label image ({error})") from error
    return _ids_of_colors(path, pixels, coding)


def random_window(
    scene: LabelledScene, size: int, augmentation: Augmentation, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return a window (bands, size, size) float32 in the scene's units and its labels (size, size) int64.

    Where the scene is smaller than the window, the image repeats its edge and the labels are 255.
    """
    zoom = math.exp(generator.uniform(*np.log(augmentation.scale_range)))
    side = max(1, round(size / zoom))
    image, labels = _cut(scene, side, generator)
    pixels = torch.from_numpy(image.astype(np.float32))
    ids = torch.from_numpy(labels.astype(np.float32))
    pixels = functional.interpolate(pixels[None], (size, size), mode="bilinear", align_corners=False, antialias=True)[0]
    ids = functional.interpolate(ids[None, None], (size, size), mode="nearest-exact")[0, 0].long()
    turned, ids = _turn(pixels, ids, generator)
    return _jitter(turned, augmentation.jitter, generator), ids


def _read_part(image: Path, label: Path, coding: LabelCoding) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    pixels, ids = read_image(image), read_labels(label, coding)
    if pixels.shape[1:] != ids.shape:
        raise SourceError(
            f"{image} is {pixels.shape[1]} x {pixels.shape[2]} px and its labels {label} are {ids.shape[0]} "
            f"x {ids.shape[1]} px; "
            "both must cover the same pixels: resample one, or correct the pairing"
        )
    return pixels, ids


def _join(parts: list[NDArray[Any]], mosaic: tuple[int, int]) -> NDArray[Any]:
    rows, columns = mosaic
    lines = [np.concatenate(parts[row * columns : (row + 1) * columns], axis=-1) for row in range(rows)]
    return np.concatenate(lines, axis=-2)


def _check_ids(path: Path, pixels: NDArray[Any], n_classes: int) -> NDArray[np.uint8]:
    if pixels.shape[0] != 1:
        raise SourceError(f'{path} has {pixels.shape[0]} bands; class ids need 1, or set labels = "colors"')
    unknown = sorted({int(v) for v in np.unique(pixels)} - {*range(n_classes), IGNORED})
    if unknown:
        raise SourceError(
            f"{path} holds the labels {unknown[:10]}; 0 to {n_classes - 1} and {IGNORED} (ignored) are "
            "expected: "
            "add [[classes]] or recode the raster"
        )
    ids: NDArray[np.uint8] = pixels[0].astype(np.uint8)
    return ids


def _ids_of_colors(path: Path, pixels: NDArray[np.uint32], coding: LabelCoding) -> NDArray[np.uint8]:
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    ids = np.full(packed.shape, IGNORED, dtype=np.uint8)
    known = np.zeros(packed.shape, dtype=bool)
    for index, color in [*enumerate(coding.colors or ()), *((IGNORED, c) for c in coding.ignored_colors)]:
        here = packed == ((color[0] << 16) | (color[1] << 8) | color[2])
        ids[here] = index
        known |= here
    if not known.all():
        values, counts = np.unique(packed[~known], return_counts=True)
        named = ", ".join(f"#{v:06x} ({n} px)" for v, n in list(zip(values, counts, strict=True))[:10])
        raise SourceError(
            f"{path} has colours that are neither a class nor ignored: {named}; add them to [[classes]] or ignored_colors"
        )
    return ids


def _cut(scene: LabelledScene, side: int, generator: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    height, width = scene.labels.shape
    row, col = (int(generator.integers(max(1, length - side + 1))) for length in (height, width))
    image = scene.image[:, row : row + side, col : col + side]
    labels = scene.labels[row : row + side, col : col + side]
    below, right = side - labels.shape[0], side - labels.shape[1]
    if below or right:
        image = np.pad(image, ((0, 0), (0, below), (0, right)), mode="edge")
        labels = np.pad(labels, ((0, below), (0, right)), constant_values=IGNORED)
    return image, labels


def _turn(pixels: Tensor, ids: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Apply one of the eight symmetries of the square."""
    quarter_turns = int(generator.integers(4))
    if generator.integers(2):
        pixels, ids = pixels.flip(-1), ids.flip(-1)
    return torch.rot90(pixels, quarter_turns, (-2, -1)), torch.rot90(ids, quarter_turns, (-2, -1))


def _jitter(pixels: Tensor, amount: float, generator: np.random.Generator) -> Tensor:
    """Change contrast and brightness by up to ``amount``, and each band's gain by up to a quarter of it."""
    contrast, brightness = 1 + generator.uniform(-amount, amount, 2)
    gains = brightness * (1 + generator.uniform(-amount, amount, pixels.shape[0]) / 4)
    mean = pixels.mean()
    gain = torch.from_numpy(gains.astype(np.float32))[:, None, None]
    return ((pixels - mean) * float(contrast) + mean) * gain
