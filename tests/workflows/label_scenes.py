"""Scenes in memory that training reads: pixels that show their own labels."""

import numpy as np
from numpy.typing import NDArray

from pipeline.georef import Georef
from pipeline.scene_info import SceneInfo
from workflows.memory_scene import MemoryLabels, MemoryScene
from workflows.training_scenes import TrainingScene


def info_of(shape: tuple[int, int], *, n_bands: int = 2, masked: bool = False) -> SceneInfo:
    return SceneInfo(
        driver="memory",
        height=shape[0],
        width=shape[1],
        n_bands=n_bands,
        dtype="uint8",
        nodata=None,
        mask_kind="mask" if masked else "none",
        georef=Georef(),
        block_shape=shape,
        random_access=True,
        band_names=tuple(f"band_{i}" for i in range(n_bands)),
    )


def scene_of(labels: NDArray[np.uint8], *, name: str = "s", valid: NDArray[np.bool_] | None = None) -> TrainingScene:
    """Return the scene of ``labels`` (height, width), of which class k is shown as (50 (k + 1), 20 (k + 1)), 255 as (0, 0)."""
    shown = np.where(labels == 255, 0, labels + 1).astype(np.uint8)
    info = info_of(labels.shape, masked=valid is not None)
    image = MemoryScene(np.stack([50 * shown, 20 * shown]), valid, info, (1, 2))
    return TrainingScene(name, image, MemoryLabels(labels, info), input_range=(0.0, 255.0))


def blobs(shape: tuple[int, int], *, n_classes: int = 3, seed: int = 0, side: int = 16) -> NDArray[np.uint8]:
    """Return (height, width) labels in squares of ``side`` px."""
    small = np.random.default_rng(seed).integers(0, n_classes, (shape[0] // side + 1, shape[1] // side + 1))
    labels: NDArray[np.uint8] = small.repeat(side, axis=0).repeat(side, axis=1)[: shape[0], : shape[1]].astype(np.uint8)
    return labels
