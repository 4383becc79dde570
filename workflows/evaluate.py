"""How good are predicted labels? Compare them with labels that people drew, window by window, in memory that does not grow with the scene.

::

    prediction, labels -> windows of whole chunks, row by row -> counts -> sums of the scene -> figures, intervals, error map
                          one thread reads                       others count
"""

from __future__ import annotations

import functools
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import SourceError, SpecError
from pipeline.gdal_scene import gdal_environment
from pipeline.labels import NODATA_LABEL
from pipeline.ordered import map_ahead
from pipeline.window import tiling
from workflows.confusion import SceneMetrics, Tally
from workflows.evaluation_counts import CountSpec, Piece, SceneCounts, count_window, effective_block_px
from workflows.evaluation_intervals import find_intervals, join_blocks
from workflows.evaluation_pairs import OpenPair, find_classes
from workflows.label_reading import LabelReading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.window import Window
    from workflows.evaluation_intervals import Intervals
    from workflows.evaluation_pairs import Pair
    from workflows.label_reading import Classes
    from workflows.trimap import TrimapCounts

    Progress = Callable[[int, int], None]

MAX_MAPS = 9
"""Error maps that a picture has room for."""
MOST_WRONG = 200
"""What stands in an error map where every pixel of a cell is wrong."""
_WINDOW_PX = 2048
_N_THREADS = min(4, os.cpu_count() or 1)
_GDAL_CACHE_BYTES = 128 * 2**20
"""Decoded blocks that GDAL keeps: a row of windows shares them. Its own choice, 5 % of the machine's memory, would fill with the scene."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """What is compared, and what is told."""

    pairs: tuple[Pair, ...]
    """One or more."""
    classes: tuple[str, ...] | None = None
    """Names of class 0, 1, ...; None: as the outputs of `atrous segment` among the predictions have them, else "0", "1", ...."""
    reading: LabelReading = field(default_factory=LabelReading)
    """What the values of the labels mean."""
    trimap_px: int = 4
    """Distance from a boundary within which the accuracy is told, px, 1 to 32."""
    block_px: int = 512
    """Side of the blocks of ground that are drawn for the intervals, px."""
    map_px: tuple[int, int] | None = None
    """(height, width) that an error map may take, px; None: none is made."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise SpecError("nothing was given to evaluate; give a prediction and its labels: PRED LABELS")
        CountSpec(shape=(1, 1), n_classes=1, trimap_px=self.trimap_px, block_px=self.block_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured over one pair, or over all."""

    metrics: SceneMetrics
    """The confusion matrix, and all that is read off it."""
    trimap: TrimapCounts
    """The same near boundaries."""
    intervals: Intervals
    """How far the IoUs can be trusted."""
    n_pixels: int
    """All pixels of the ground."""
    n_unlabelled: int
    """Those without a label, which are not counted."""
    n_unpredicted: int
    """Those with a label and without a prediction, which are not counted either."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorMap:
    """Where a prediction is wrong, scene-sized."""

    name: str
    """Of the pair."""
    wrong: NDArray[np.uint8]
    """(rows, cols): share of wrong pixels of each cell, 0 to `MOST_WRONG`; 255 where none was counted."""
    cell_px: int
    """Side of a cell, px of the scene."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation found."""

    pairs: tuple[tuple[Pair, Figures], ...]
    """Each pair by itself."""
    pooled: Figures
    """Over the pixels and blocks of all pairs."""
    maps: tuple[ErrorMap, ...]
    """Of the first `MAX_MAPS` pairs, where they were asked for."""
    trimap_px: int
    """As it was asked for."""
    block_px: tuple[int, ...]
    """Side of the blocks of each pair, px: larger than what was asked for where there would be too many."""
    seconds: float
    """Wall time, s."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of class 0, 1, ...."""
        return self.pooled.metrics.classes


def run(request: EvaluateRequest, on_progress: Progress | None = None) -> Evaluation:
    """Compare the predictions of ``request`` with their labels.

    Parameters
    ----------
    request
        What is compared.
    on_progress
        Called with (pixels read, pixels in all).

    Raises
    ------
    SpecError
        A setting is out of range, or the pairs are of different classes.
    SourceError
        A file is missing, damaged, of another grid, holds an unknown class, or no pixel has both a label and a prediction.
    MissingDependencyError
        Labels are polygons, and the libraries for them are not installed.
    """
    started = time.perf_counter()
    classes = find_classes([pair.prediction for pair in request.pairs], request.classes)
    with ExitStack() as files, gdal_environment(GDAL_CACHEMAX=_GDAL_CACHE_BYTES):
        # all are opened before the first is read: a wrong pairing is told at once
        opened = [files.enter_context(OpenPair(pair, classes, request.reading)) for pair in request.pairs]
        report = _Report(sum(math.prod(one.shape) for one in opened), on_progress)
        specs = [_count_spec(request, one.shape, len(classes.names), with_map=i < MAX_MAPS) for i, one in enumerate(opened)]
        counts = [_count_pair(one, spec, report) for one, spec in zip(opened, specs, strict=True)]
    return _conclude(request, classes, specs, counts, seconds=time.perf_counter() - started)


def plan_windows(shape: tuple[int, int], chunk_shape: tuple[int, int]) -> Iterator[Window]:
    """Return windows that cover a scene once, row by row: whole chunks, about 2048 x 2048 px, or one chunk where that is larger.

    Examples
    --------
    >>> [window.shape for window in plan_windows((5000, 3000), (1000, 3000))]
    [(1000, 3000), (1000, 3000), (1000, 3000), (1000, 3000), (1000, 3000)]
    """
    width = chunk_shape[1] * max(1, _WINDOW_PX // chunk_shape[1])
    height = chunk_shape[0] * max(1, _WINDOW_PX**2 // width // chunk_shape[0])
    return tiling(shape, height=height, width=width)


class _Report:
    """Tells how many pixels were read."""

    def __init__(self, n_pixels: int, on_progress: Progress | None) -> None:
        self._n_pixels, self._n_done, self._on_progress = n_pixels, 0, on_progress

    def add(self, n_pixels: int) -> None:
        self._n_done += n_pixels
        if self._on_progress is not None:
            self._on_progress(self._n_done, self._n_pixels)


def _count_spec(request: EvaluateRequest, shape: tuple[int, int], n_classes: int, *, with_map: bool) -> CountSpec:
    room = request.map_px if with_map else None
    return CountSpec(
        shape=shape,
        n_classes=n_classes,
        trimap_px=request.trimap_px,
        block_px=effective_block_px(shape, request.block_px),
        cell_px=None if room is None else max(1, *(-(-size // most) for size, most in zip(shape, room, strict=True))),
    )


def _count_pair(pair: OpenPair, spec: CountSpec, report: _Report) -> SceneCounts:
    """Count a pair: this thread reads, so that files are read from top to bottom, and others count."""
    counts = SceneCounts(spec)
    windows = plan_windows(pair.shape, pair.chunk_shape)
    pixels = (pair.read(window, halo_px=spec.trimap_px) for window in windows)
    with ThreadPoolExecutor(_N_THREADS) as pool:
        for found in map_ahead(pool, functools.partial(count_window, spec=spec), pixels, ahead=_N_THREADS + 1):
            counts.add(found)
            report.add(found.total.n_pixels)
    return counts


def _conclude(
    request: EvaluateRequest, classes: Classes, specs: list[CountSpec], counts: list[SceneCounts], *, seconds: float
) -> Evaluation:
    total = functools.reduce(Piece.__add__, (one.total for one in counts))
    if not total.confusion.any():
        raise SourceError(
            f"no pixel of {', '.join(map(str, request.pairs))} has both a label and a prediction ({total.n_unlabelled} of "
            f"{total.n_pixels} px have no label, {total.n_unpredicted} have a label and no prediction); check that they show the same "
            "ground, and what the settings say of nodata"
        )
    kept = _occurring(total.confusion) if classes.are_numbers else np.arange(len(classes.names))
    names = tuple(classes.names[i] for i in kept)
    blocks = [_select(one.tally_of_blocks(), kept) for one in counts]
    each = [
        _figures(str(pair), names, _only(one.total, kept), tally)
        for pair, one, tally in zip(request.pairs, counts, blocks, strict=True)
    ]
    maps = [_error_map(pair, spec, one) for pair, spec, one in zip(request.pairs, specs, counts, strict=True) if spec.cell_px]
    return Evaluation(
        pairs=tuple(zip(request.pairs, each, strict=True)),
        pooled=each[0] if len(each) == 1 else _figures("all", names, _only(total, kept), join_blocks(blocks)),
        maps=tuple(maps),
        trimap_px=request.trimap_px,
        block_px=tuple(spec.block_px for spec in specs),
        seconds=round(seconds, 1),
    )


def _occurring(confusion: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the classes that a matrix has pixels of."""
    return np.flatnonzero(confusion.any(axis=0) | confusion.any(axis=1))


def _only(counts: Piece, kept: NDArray[np.intp]) -> Piece:
    """Return the counts with the classes ``kept``; the others have no pixels."""
    return replace(counts, confusion=counts.confusion[np.ix_(kept, kept)])


def _select(blocks: Tally, kept: NDArray[np.intp]) -> Tally:
    return Tally(hits=blocks.hits[:, kept], labelled=blocks.labelled[:, kept], predicted=blocks.predicted[:, kept])


def _figures(name: str, classes: tuple[str, ...], counts: Piece, blocks: Tally) -> Figures:
    return Figures(
        metrics=SceneMetrics.of_matrix(name, classes, counts.confusion),
        trimap=counts.trimap,
        intervals=find_intervals(blocks),
        n_pixels=counts.n_pixels,
        n_unlabelled=counts.n_unlabelled,
        n_unpredicted=counts.n_unpredicted,
    )


def _error_map(pair: Pair, spec: CountSpec, counts: SceneCounts) -> ErrorMap:
    wrong = (counts.counted - counts.right) * MOST_WRONG / np.maximum(counts.counted, 1)
    shown = np.where(counts.counted > 0, np.ceil(wrong), NODATA_LABEL).astype(np.uint8)
    return ErrorMap(name=str(pair), wrong=shown, cell_px=spec.cell_px or 1)
