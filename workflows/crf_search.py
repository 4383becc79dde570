"""Which CRF is best on labelled data? What the papers did: a grid over w1, theta_alpha and theta_beta, then finer around the best.

::

    stores + labels -> tiles -> for each tile: read once, refine with every CRF of the grid, count -> table -> finer grid

Every tile is refined as a run would refine it: on the lattice of the scene, with its halo.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.blended import BlendedHere
from pipeline.crf.tile import ONE_THREAD, Processor
from pipeline.engine.choose import choose_device
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import SourceError, SpecError
from pipeline.segment import refine
from pipeline.workplace import Workplace
from workflows.confusion import SceneMetrics, count_confusion
from workflows.crf_grid import AXES, CrfGrid
from workflows.crf_request import CrfRequest, choose
from workflows.label_reading import LabelReading
from workflows.labelled_store import LabelledStore, StoreAndLabels, open_labelled, read_labelled_tile
from workflows.local_workers import count_cores
from workflows.stored_run import open_stored
from workflows.trimap import WIDEST_PX, TrimapCounts, count_trimap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from pipeline.crf.energy import CrfSpec
    from pipeline.engine.protocol import Device
    from workflows.labelled_store import LabelledTile
    from workflows.stored_run import StoredRun

    Progress = Callable[[int, int], None]
    _Place = tuple[LabelledStore, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What is tried, and on what."""

    sources: tuple[StoreAndLabels, ...]
    """Stores with their labels, one or more, all of one model."""
    base: CrfRequest | CrfSpec
    """The CRF whose w_appearance, theta_alpha and theta_beta are varied."""
    grid: CrfGrid = field(default_factory=CrfGrid)
    """Their values in the first round."""
    n_rounds: int = 1
    """Rounds; each after the first tries a finer grid around the best so far."""
    max_pixels: int | None = None
    """About so many pixels are refined with each CRF, in whole tiles spread evenly; None: all that have labels."""
    trimap_px: int = 4
    """Distance from a boundary within which the trimap accuracy is told, px, 1 to 32."""
    reading: LabelReading = field(default_factory=LabelReading)
    """What coloured labels mean."""

    def __post_init__(self) -> None:
        clash = sorted(set(AXES) & set(self.base.changes)) if isinstance(self.base, CrfRequest) else []
        if clash:
            raise SpecError(
                f"{clash[0]} was given as a setting of the CRF, and it is searched; give its values with --{clash[0].replace('_', '-')}"
            )
        if not self.sources:
            raise SpecError("no store was given to search on; give at least one with its labels: STORE.zarr LABELS")
        for name, lowest, highest in (("n_rounds", 1, 10), ("trimap_px", 1, WIDEST_PX)):
            if not lowest <= getattr(self, name) <= highest:
                raise SpecError(f"{name} = {getattr(self, name)} was asked for; it must lie between {lowest} and {highest}")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise SpecError(f"a search on {self.max_pixels} px was asked for; give 1 or more, at least one tile is used")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRow:
    """One CRF and how good it is."""

    crf: CrfSpec | None
    """None: the labels of the network, unrefined."""
    metrics: SceneMetrics
    """Over all pixels that were counted."""
    trimap: TrimapCounts
    """The same, near boundaries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """What a search found."""

    network: SearchRow
    """Without a CRF."""
    rows: tuple[SearchRow, ...]
    """Every CRF that was tried, in the order of the grids."""
    trimap_px: int
    """As it was asked for."""
    n_tiles: int
    """CRF tiles that were refined with each."""
    n_tiles_labelled: int
    """CRF tiles that have labels."""
    sources: tuple[str, ...]
    """Names of the stores."""
    model_path: str
    """The model that made the probabilities."""
    model_sha256: str
    """Its digest then."""
    seconds: float
    """Wall time, s."""

    @property
    def best(self) -> SearchRow:
        """The CRF with the highest mean IoU; of several, the first."""
        return best_of(self.rows)

    @property
    def improved(self) -> bool:
        """Whether the best CRF has a higher mean IoU than the network alone."""
        return (self.best.metrics.mean_iou or 0.0) > (self.network.metrics.mean_iou or 0.0)


def best_of(rows: Iterable[SearchRow]) -> SearchRow:
    """Return the row with the highest mean IoU; of several, the first."""
    return max(rows, key=lambda row: row.metrics.mean_iou or 0.0)


class _Score:
    """Counts of one CRF, as tiles pass."""

    def __init__(self, n_classes: int) -> None:
        self._confusion: NDArray[np.int64] = np.zeros((n_classes, n_classes), np.int64)
        self._trimap = TrimapCounts.none()

    def add(self, predicted: NDArray[np.uint8], tile: LabelledTile) -> None:
        self._confusion += count_confusion(tile.labels, predicted, n_classes=len(self._confusion))
        self._trimap += count_trimap(predicted, tile.labels, tile.distance)

    def row(self, crf: CrfSpec | None, classes: tuple[str, ...]) -> SearchRow:
        confusion = tuple(map(tuple, self._confusion.tolist()))
        return SearchRow(crf=crf, metrics=SceneMetrics(scene="all", classes=classes, confusion=confusion), trimap=self._trimap)


def find_processor(device: Device, threads: int | None) -> Processor:
    """Return what the CRFs run on; threads None: one for each core."""
    return Processor(threads=threads or count_cores(), device=choose_device(EngineSpec(device=device)))


def run(request: SearchRequest, on_progress: Progress | None = None, *, processor: Processor = ONE_THREAD) -> SearchReport:
    """Measure every CRF of the grid.

    Raises
    ------
    SpecError
        A CRF of the grid is not valid, or the stores are of different models.
    StoreError, SourceError, StoreMismatchError
        A store, its scene or its labels cannot be used.
    """
    started = time.perf_counter()
    runs = [open_stored(source.store, scene=source.scene) for source in request.sources]
    _check_one_model(runs)
    base, _ = choose(request.base, runs[0].model)
    grid, tried = request.grid, request.grid.specs(base)
    stores = [
        open_labelled(stored, source.labels, request.reading, crf=base)
        for stored, source in zip(runs, request.sources, strict=True)
    ]
    tiles = [(store, index) for store in stores for index in store.labelled_tiles()]
    if not tiles:
        raise SourceError(
            "no pixel of the labels has a class; a search needs labels: check --label-colors, --ignored-colors and --values"
        )
    chosen, classes = _choose(tiles, request.max_pixels, tile_px=base.tile_px), tuple(one.name for one in runs[0].model.classes)
    measure = functools.partial(_measure, tiles=chosen, classes=classes, on_progress=on_progress, processor=processor)
    rows = measure([None, *tried])
    for _ in range(1, request.n_rounds):
        best = best_of(row for row in rows.values() if row.crf is not None).crf
        assert best is not None
        grid = grid.around(best)
        rows |= measure([crf for crf in grid.specs(base) if crf not in rows])
    return SearchReport(
        network=rows.pop(None),
        rows=tuple(rows.values()),
        trimap_px=request.trimap_px,
        n_tiles=len(chosen),
        n_tiles_labelled=len(tiles),
        sources=tuple(source.store.name for source in request.sources),
        model_path=runs[0].spec.model_path,
        model_sha256=runs[0].spec.model_sha256,
        seconds=round(time.perf_counter() - started, 1),
    )


def _check_one_model(runs: list[StoredRun]) -> None:
    models = {one.spec.model_sha256: one.model.name for one in runs}
    if len(models) > 1:
        found = ", ".join(f"{name} ({sha256[:12]}…)" for sha256, name in models.items())
        raise SpecError(
            f"the stores were made by {len(models)} models: {found}; the best CRF is a model's own, give stores of one"
        )


def _choose(tiles: list[_Place], max_pixels: int | None, *, tile_px: int) -> list[_Place]:
    """Return as many tiles as ``max_pixels`` allows, at least one, evenly spread over all stores."""
    if max_pixels is None:
        return tiles
    n_wanted = min(len(tiles), max(1, max_pixels // tile_px**2))
    return [tiles[len(tiles) * (2 * i + 1) // (2 * n_wanted)] for i in range(n_wanted)]


def _measure(
    crfs: list[CrfSpec | None],
    *,
    tiles: list[_Place],
    classes: tuple[str, ...],
    on_progress: Progress | None,
    processor: Processor,
) -> dict[CrfSpec | None, SearchRow]:
    """Return what each CRF (None: the network alone) gives on all tiles; a tile is read once."""
    scores = {crf: _Score(len(classes)) for crf in crfs}
    halo_px = max((crf.halo_px for crf in crfs if crf is not None), default=0)
    for n_before, (store, index) in enumerate(tiles):
        tile = read_labelled_tile(store, index, halo_px=halo_px)
        for n_tried, crf in enumerate(crfs, start=1):
            predicted = tile.network if crf is None else _refined(tile, store, crf, processor)
            scores[crf].add(predicted, tile)
            if on_progress is not None:
                on_progress(n_before * len(crfs) + n_tried, len(tiles) * len(crfs))
    return {crf: score.row(crf, classes) for crf, score in scores.items()}


def _refined(tile: LabelledTile, store: LabelledStore, crf: CrfSpec, processor: Processor) -> NDArray[np.uint8]:
    """Return the labels of a tile as a run with ``crf`` would write them, (height, width) u1."""
    spec, windows = store.prepared.spec, tile.windows
    workplace = Workplace(processor=processor)
    return refine(BlendedHere(tile.probabilities), tile.tile, windows, spec=spec, crf=crf, workplace=workplace)[0]
