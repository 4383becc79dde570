"""What is compared with what? Predictions, the labels of the same ground, and one list of classes for both.

::

    OUT.zarr       knows its classes and their colours          one list of classes  -> labels are read as these
    raster of ids  does not: names are given, or "0", "1", ...
                   of the values that occur
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from pipeline.errors import SpecError
from pipeline.store import is_store, open_layout
from workflows.evaluation_counts import WindowPixels
from workflows.label_raster import open_raster
from workflows.label_reading import NUMBERED, Classes
from workflows.label_source import LabelSpec, open_labels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from pipeline.network.spec import ClassSpec
    from pipeline.window import Window
    from workflows.label_raster import RasterLabels
    from workflows.label_reading import LabelReading
    from workflows.label_source import LabelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A prediction and the labels of the same ground."""

    prediction: Path
    """An output of `atrous segment`, or a raster of class ids."""
    labels: Path
    """A raster, an output of `atrous segment`, or polygons."""

    def __str__(self) -> str:
        return f"{self.prediction.name} against {self.labels.name}"


def find_classes(predictions: Sequence[Path], given: tuple[str, ...] | None) -> Classes:
    """Return the classes of ``predictions``, outputs or rasters.

    Raises
    ------
    SourceError
        A file is missing.
    SpecError
        Outputs are of different classes, or of another number than was given.
    """
    stored = {path: open_layout(path).classes for path in predictions if is_store(path)}
    if not stored:
        return Classes(names=given or NUMBERED, colors=None)
    first, classes = next(iter(stored.items()))
    for path, others in stored.items():
        if _names(others) != _names(classes):
            raise SpecError(
                f"{first} has the classes {', '.join(_names(classes))}, and {path} {', '.join(_names(others))}; pairs that are evaluated "
                "together must be of the same classes: evaluate them one by one"
            )
    if given is not None and len(given) != len(classes):
        raise SpecError(
            f"{len(given)} classes were given, and {first} has {len(classes)}: {', '.join(_names(classes))}; leave out --classes"
        )
    found = Classes.of(classes)
    return replace(found, names=given) if given else found


def _names(classes: tuple[ClassSpec, ...]) -> tuple[str, ...]:
    return tuple(one.name for one in classes)


def pair_up(paths: Sequence[Path]) -> tuple[Pair, ...]:
    """Return PRED LABELS PRED LABELS ... as pairs."""
    if len(paths) % 2 or not paths:
        raise SpecError(
            f"{len(paths)} path{'s' * (len(paths) != 1)} given; predictions and labels come in pairs: PRED LABELS PRED LABELS"
        )
    return tuple(Pair(prediction=one, labels=other) for one, other in zip(paths[::2], paths[1::2], strict=True))


class OpenPair:
    """A pair whose files are open, read window by window by one thread."""

    def __init__(self, pair: Pair, classes: Classes, reading: LabelReading) -> None:
        self._files = ExitStack()
        try:
            self._predicted: RasterLabels = self._files.enter_context(open_raster(_prediction_spec(pair.prediction, classes)))
            info = self._predicted.info
            spec = reading.spec(pair.labels, classes)
            self._labels: LabelSource = self._files.enter_context(open_labels(spec, shape=info.shape, georef=info.georef))
        except BaseException:
            self._files.close()
            raise

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), px."""
        return self._predicted.info.shape

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(height, width) of the unit in which the prediction is stored, px."""
        return self._predicted.info.block_shape

    def read(self, window: Window, *, halo_px: int) -> WindowPixels:
        """Read a window, the labels with a halo."""
        around = window.grow(halo_px).clip(self.shape)
        assert around is not None
        return WindowPixels(
            window=window, around=around, predicted=self._predicted.read(window), labels=self._labels.read(around)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._files.close()


def _prediction_spec(path: Path, classes: Classes) -> LabelSpec:
    """Return how a prediction is read: the ids as they are, whatever the classes are called now."""
    if not is_store(path):
        return LabelSpec(path=path, classes=classes.names)
    stored = _names(open_layout(path).classes)
    return LabelSpec(path=path, classes=classes.names, values=tuple(zip(stored, classes.names, strict=True)))
