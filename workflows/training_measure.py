"""How good is a network on labelled scenes, while or after it is trained? Block by block: predict with context around, count inside.

::

    +-------------+
    |   margin    |   what the network sees
    |   +-----+   |
    |   |block|   |   what is counted
    |   +-----+   |
    +-------------+

Nothing but a block is in memory. A finished job on a whole scene is measured by `atrous evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.window import Window
from workflows.confusion import SceneMetrics, count_confusion
from workflows.training_pictures import Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pipeline.network.spec import ModelSpec
    from workflows.split import ScenePart
    from workflows.training_scenes import TrainingWindow


class Meter:
    """A network in evaluation mode, on its device, and how it is asked."""

    def __init__(self, network: nn.Module, model: ModelSpec, *, window_px: int) -> None:
        self._network = network.eval()
        self._device = next(network.parameters()).device
        self._model, self._window_px = model, window_px

    def measure(self, scene: ScenePart) -> SceneMetrics:
        """Return the metrics over the labelled pixels of ``scene``."""
        n_classes = len(self._model.classes)
        matrix = np.zeros((n_classes, n_classes), np.int64)
        for block in scene.labelled_windows(self._window_px // 2):
            labels, predicted = self._predict(scene, block)
            matrix += count_confusion(labels, predicted, n_classes=n_classes)
        return SceneMetrics.of_matrix(scene.name, tuple(one.name for one in self._model.classes), matrix)

    def sample(self, scene: ScenePart, window: Window) -> Sample:
        """Return a window of ``scene`` for the page of samples."""
        seen = scene.read(window)
        return Sample(
            name=scene.name, image=_as_picture(seen.pixels, self._model), labels=seen.labels, predicted=self._labels_of(seen)
        )

    def _predict(self, scene: ScenePart, block: Window) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return labels and predictions of a block, half as wide as what the network sees."""
        margin = self._window_px // 4
        around = Window(
            row_off=block.row_off - margin, col_off=block.col_off - margin, height=self._window_px, width=self._window_px
        )
        seen = scene.read(around)
        inside = block.relative_to(around).to_slices()
        return seen.labels[inside], self._labels_of(seen)[inside]

    def _labels_of(self, seen: TrainingWindow) -> NDArray[np.uint8]:
        windows = normalised(seen.pixels[None], self._model) * torch.from_numpy(seen.valid)
        windows = windows.to(self._device)
        with torch.inference_mode():
            logits = self._network(windows.contiguous(memory_format=torch.channels_last))
        found: NDArray[np.uint8] = logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
        return found


def normalised(pixels: NDArray[np.float32] | Tensor, model: ModelSpec) -> Tensor:
    """Return (N, bands, H, W) float32 in model input units minus the mean, over the deviation."""
    mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (model.mean, model.std))
    return (torch.as_tensor(pixels) - mean) / std


def _as_picture(pixels: NDArray[np.float32], model: ModelSpec) -> NDArray[np.uint8]:
    """Return (height, width, 3) of the first three bands, or of one as grey, over the input range."""
    low, high = model.input_range
    shown = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    found: NDArray[np.uint8] = np.clip((shown - low) * (255 / (high - low)), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return found
