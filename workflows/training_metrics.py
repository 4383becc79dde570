"""How good is a trained network on scenes it never saw? Predict in windows, count a confusion matrix.

Where windows overlap, probabilities are averaged with weights that fall towards the window's edge, so that a
pixel is judged with context on all sides.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from workflows.training_data import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pipeline.network.spec import ModelSpec
    from workflows.training_data import LabelledScene


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneMetrics:
    """What one confusion matrix says."""

    scene: str
    """Name of the scene, or of the set."""
    classes: tuple[str, ...]
    """Names of class 0, 1, ...."""
    confusion: tuple[tuple[int, ...], ...]
    """Pixels by true class (row) and predicted class (column)."""

    @property
    def iou(self) -> dict[str, float | None]:
        """Intersection over union, 0 to 1, by class; None where it is neither present nor predicted."""
        matrix = np.array(self.confusion, dtype=np.float64)
        union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
        return {name: float(matrix[i, i] / union[i]) if union[i] else None for i, name in enumerate(self.classes)}

    @property
    def mean_iou(self) -> float | None:
        """Mean of the IoUs that exist."""
        values = [value for value in self.iou.values() if value is not None]
        return sum(values) / len(values) if values else None

    @property
    def accuracy(self) -> float | None:
        """Share of labelled pixels that are right, 0 to 1."""
        matrix = np.array(self.confusion)
        return float(np.trace(matrix) / matrix.sum()) if matrix.sum() else None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them."""
        iou = {name: _rounded(value) for name, value in self.iou.items()}
        return {"mean_iou": _rounded(self.mean_iou), "accuracy": _rounded(self.accuracy), "iou": iou}


def measure_scene(network: nn.Module, model: ModelSpec, scene: LabelledScene, *, window_px: int) -> SceneMetrics:
    """Return the metrics of ``network`` on ``scene`` at its own resolution."""
    probabilities = predict_scene(network, model, scene.image, window_px=window_px)
    predicted = probabilities.argmax(dim=0).numpy()
    matrix = count_confusion(scene.labels, predicted, n_classes=len(model.classes))
    names = tuple(c.name for c in model.classes)
    return SceneMetrics(scene=scene.name, classes=names, confusion=tuple(tuple(row) for row in matrix.tolist()))


def count_confusion(labels: NDArray[np.uint8], predicted: NDArray[Any], *, n_classes: int) -> NDArray[np.int64]:
    """Return labelled pixels by true class (row) and predicted class (column); both arrays are (height, width) class ids."""
    labelled = labels != IGNORED
    pairs = labels[labelled].astype(np.int64) * n_classes + predicted[labelled]
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def pool_metrics(parts: Sequence[SceneMetrics], name: str) -> SceneMetrics:
    """Return the metrics over all pixels of ``parts``."""
    matrix = sum(np.array(part.confusion) for part in parts)
    return SceneMetrics(scene=name, classes=parts[0].classes, confusion=tuple(map(tuple, np.asarray(matrix).tolist())))


def predict_scene(network: nn.Module, model: ModelSpec, image: NDArray[Any], *, window_px: int) -> Tensor:
    """Return probabilities (classes, height, width) float32 of ``image`` (bands, height, width)."""
    height, width = image.shape[1:]
    size = window_px
    padded = np.pad(image, ((0, 0), (0, max(0, size - height)), (0, max(0, size - width))), mode="edge")
    weight = _taper(size)
    total = torch.zeros(len(model.classes), *padded.shape[1:])
    weights = torch.zeros(padded.shape[1:])
    for row in _starts(padded.shape[1], size):
        for col in _starts(padded.shape[2], size):
            here = slice(row, row + size), slice(col, col + size)
            pixels = torch.from_numpy(padded[:, here[0], here[1]].astype(np.float32))
            with torch.inference_mode():
                logits = network(normalise(pixels[None], model).contiguous(memory_format=torch.channels_last))
            total[:, here[0], here[1]] += functional.softmax(logits[0], dim=0) * weight
            weights[here] += weight
    return (total / weights)[:, :height, :width]


def normalise(windows: Tensor, model: ModelSpec) -> Tensor:
    """Return (N, bands, H, W) float32 in model input units minus the mean, over the deviation."""
    mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (model.mean, model.std))
    return (windows - mean) / std


def write_metrics(path: Path, metrics: Sequence[SceneMetrics]) -> None:
    """Write ``scene,class,iou,n_labelled_px``, one line per scene and class, and one for the mean."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["scene", "class", "iou", "n_labelled_px"])
        for one in metrics:
            for (name, value), row in zip(one.iou.items(), one.confusion, strict=True):
                writer.writerow([one.scene, name, _rounded(value), sum(row)])
            writer.writerow([one.scene, "mean", _rounded(one.mean_iou), sum(map(sum, one.confusion))])


def _starts(length: int, size: int) -> list[int]:
    """Return first pixels of windows that overlap by at least a third and end at ``length``."""
    n_steps = -(-(length - size) // (size * 2 // 3))
    return [0] if n_steps <= 0 else [round(i * (length - size) / n_steps) for i in range(n_steps + 1)]


def _taper(size: int) -> Tensor:
    """Return (size, size) weights, 1 in the centre, falling linearly to just above 0 at the edge."""
    ramp = 1 - (torch.arange(size) - (size - 1) / 2).abs() / (size / 2)
    return ramp[:, None] * ramp[None, :]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
