"""How good are predicted labels? A matrix of counts, and the figures that are read off it.

::

                predicted                      hits of a class    its place on the diagonal
               a    b    c                     IoU                hits / (row + column - hits)
    true  a    6    2    0    row: pixels      recall             hits / row
          b    2    2    0    of a class       precision          hits / column
          c    0    0    0                     F1                 2 hits / (row + column)

A class of which the denominator is 0 has no such figure: it is left out of the mean. Pixels without a label are in no matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.labels import NODATA_LABEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tally:
    """What the figures of the classes are made of; the last axis is the class, others may stand before it."""

    hits: NDArray[Any]
    """(..., classes): pixels whose predicted class is the true one."""
    labelled: NDArray[Any]
    """(..., classes): pixels that are of the class."""
    predicted: NDArray[Any]
    """(..., classes): pixels, with a label, that were given the class."""

    @classmethod
    def of_matrix(cls, confusion: NDArray[Any]) -> Self:
        """Return the tally of (..., classes, classes) pixels by true class (row) and predicted class (column)."""
        return cls(
            hits=np.diagonal(confusion, axis1=-2, axis2=-1),
            labelled=confusion.sum(axis=-1),
            predicted=confusion.sum(axis=-2),
        )

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union, 0 to 1, NaN where a class is neither present nor predicted."""
        return _ratio(self.hits, self.labelled + self.predicted - self.hits)

    @property
    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of precision and recall, 0 to 1, NaN where a class is neither present nor predicted."""
        return _ratio(2 * self.hits, self.labelled + self.predicted)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of a predicted class that is right, 0 to 1, NaN where it is not predicted."""
        return _ratio(self.hits, self.predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of a true class that was found, 0 to 1, NaN where it is not present."""
        return _ratio(self.hits, self.labelled)

    @property
    def mean_iou(self) -> NDArray[np.float64]:
        """(...): mean of the IoUs that exist, NaN where none does."""
        return mean_of_existing(self.iou)

    @property
    def frequency_weighted_iou(self) -> NDArray[np.float64]:
        """(...): mean of the IoUs, each weighted with the pixels of its true class, NaN without pixels."""
        return _ratio((np.nan_to_num(self.iou) * self.labelled).sum(axis=-1), self.labelled.sum(axis=-1))

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(...): share of labelled pixels that are right, NaN without pixels."""
        return _ratio(self.hits.sum(axis=-1), self.labelled.sum(axis=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneMetrics:
    """What one confusion matrix says."""

    scene: str
    """Name of the scene, or of the set."""
    classes: tuple[str, ...]
    """Names of class 0, 1, ...."""
    confusion: tuple[tuple[int, ...], ...]
    """Pixels by true class (row) and predicted class (column)."""

    @classmethod
    def of_matrix(cls, scene: str, classes: tuple[str, ...], confusion: NDArray[np.int64]) -> Self:
        """Return what ``confusion`` (classes, classes) says."""
        return cls(scene=scene, classes=classes, confusion=tuple(map(tuple, confusion.tolist())))

    @property
    def matrix(self) -> NDArray[np.int64]:
        """The counts as an array, (classes, classes)."""
        return np.array(self.confusion, dtype=np.int64).reshape(len(self.classes), len(self.classes))

    @property
    def tally(self) -> Tally:
        """What the figures are made of."""
        return Tally.of_matrix(self.matrix)

    @property
    def n_pixels(self) -> int:
        """Pixels that were counted."""
        return int(self.matrix.sum())

    @property
    def iou(self) -> dict[str, float | None]:
        """Intersection over union, 0 to 1, by class; None where it is neither present nor predicted."""
        return self._by_class(self.tally.iou)

    @property
    def f1(self) -> dict[str, float | None]:
        """Harmonic mean of precision and recall, 0 to 1, by class; None where it is neither present nor predicted."""
        return self._by_class(self.tally.f1)

    @property
    def precision(self) -> dict[str, float | None]:
        """Share of a predicted class that is right, 0 to 1; None where it is not predicted."""
        return self._by_class(self.tally.precision)

    @property
    def recall(self) -> dict[str, float | None]:
        """Share of a true class that was found, 0 to 1; None where it is not present."""
        return self._by_class(self.tally.recall)

    @property
    def mean_iou(self) -> float | None:
        """Mean of the IoUs that exist."""
        return number_or_none(self.tally.mean_iou)

    @property
    def frequency_weighted_iou(self) -> float | None:
        """Mean of the IoUs, each weighted with the pixels of its true class."""
        return number_or_none(self.tally.frequency_weighted_iou)

    @property
    def accuracy(self) -> float | None:
        """Share of labelled pixels that are right, 0 to 1."""
        return number_or_none(self.tally.accuracy)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them."""
        iou = {name: _rounded(value) for name, value in self.iou.items()}
        return {"mean_iou": _rounded(self.mean_iou), "accuracy": _rounded(self.accuracy), "iou": iou}

    def _by_class(self, values: NDArray[np.float64]) -> dict[str, float | None]:
        return {name: number_or_none(value) for name, value in zip(self.classes, values, strict=True)}


def count_confusion(labels: NDArray[np.uint8], predicted: NDArray[Any], *, n_classes: int) -> NDArray[np.int64]:
    """Return labelled pixels by true class (row) and predicted class (column); both arrays are (height, width) class ids."""
    labelled = labels != NODATA_LABEL
    pairs = labels[labelled].astype(np.int64) * n_classes + predicted[labelled]
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def pool_metrics(parts: Sequence[SceneMetrics], name: str) -> SceneMetrics:
    """Return the metrics over all pixels of ``parts``, which are of the same classes."""
    return SceneMetrics.of_matrix(name, parts[0].classes, np.sum([part.matrix for part in parts], axis=0))


def mean_of_existing(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is."""
    return _ratio(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))


def number_or_none(value: Any) -> float | None:
    """Return a plain number; None for NaN."""
    return None if np.isnan(value) else float(value)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``part / whole``, NaN where the whole is 0."""
    result = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=result, where=np.asarray(whole) > 0)
    return result


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
