"""What do seams cost? Labels are computed again where blocks, tiles and windows meet, as if no seam were near, and compared.

::

    stored    ... window |<overlap>| window ...        a window that has the place in its middle
                        place                                 place
                                                        |----- window -----|     (with CRF: more such around it, and one CRF tile)
                                                             |square|            compared: label by label

The same is done at places far from all seams, with a window that is displaced: what another context alone does to labels.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.classify import classify
from pipeline.crf.tile import Processor, refine_tile
from pipeline.engine.choose import choose_device, has_openvino
from pipeline.engine.engines import blender_for
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import SpecError
from pipeline.grid import Blocks, Lattice
from pipeline.labels import dequantise
from pipeline.locate import network_lattice
from pipeline.network.receptive_field import margin_px
from pipeline.network.scales import exactly
from pipeline.normalise import normalise
from pipeline.scene import open_scene, read_reflected
from pipeline.spec import SegmentSpec
from pipeline.store import open_reader
from workflows.fingerprint import hard_fields, soft_fields
from workflows.journal_survey import DONE, survey_journal
from workflows.local_workers import count_cores
from workflows.prepare import reopen
from workflows.refinement import reopen_refinement
from workflows.run_state import RunPaths, check_same, read_record
from workflows.seam_places import Place, PlaceKind, choose_places
from workflows.worker import load_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from numpy.typing import NDArray

    from pipeline.engine.protocol import Engine
    from pipeline.network.spec import ModelSpec
    from pipeline.scene import Scene, Tile
    from pipeline.window import Window
    from workflows.prepare import Prepared

    Progress = Callable[[int, int], None]
    Reader = Callable[[Window], NDArray[np.uint8]]

_SQUARE_PX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was found at one place."""

    kind: PlaceKind
    """``block``, ``tile``, ``window``: there blocks, CRF tiles or network windows meet; ``inside``: none does."""
    row: int
    """The first row below the place, px."""
    col: int
    """The first column right of it, px."""
    n_pixels: int
    """Labels that were compared: the pixels with data in the square."""
    n_differ: int
    """Those that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeamReport:
    """What was found at all places."""

    square_px: int
    """Side of the squares that were compared, px."""
    displaced_px: int
    """How far the window at a place inside was moved from the place, px down and to the right."""
    engine: str
    """What ran the network, and where; empty where stored probabilities were refined."""
    places: tuple[Comparison, ...]
    """All places; none where the scene is one block and one network window, or nothing is finished."""
    changed: tuple[str, ...]
    """What is different from the run and may change a rounding, one sentence each."""
    seconds: float
    """Wall time, s."""

    def of(self, kind: PlaceKind) -> tuple[Comparison, ...]:
        """Return the places of one kind."""
        return tuple(place for place in self.places if place.kind == kind)

    def share(self, kind: PlaceKind) -> float | None:
        """Return which share of the labels differs at places of a kind, 0 to 1; None where none was compared."""
        found = self.of(kind)
        n_pixels = sum(place.n_pixels for place in found)
        return sum(place.n_differ for place in found) / n_pixels if n_pixels else None


def run(out: Path, *, n_places: int, on_progress: Progress | None = None) -> SeamReport:
    """Compute labels of ``out`` again at up to ``n_places`` places of each kind, in this process; changes nothing.

    Parameters
    ----------
    out
        Root of an output, finished or not; what is not finished is not looked at.
    n_places
        At most so many places where blocks meet, where CRF tiles meet, where windows meet, and inside.
    on_progress
        Called with (places looked at, places to look at).

    Raises
    ------
    StoreError
        ``out`` has no state of a run, or its labels cannot be read.
    SourceError, UnknownModelError, StoreMismatchError
        The scene, the model, or the probabilities that were refined are not there, or are no longer those of the run.
    """
    if n_places < 1:
        raise SpecError(f"--seams {n_places} was asked for; give the number of places of each kind, 1 or more")
    started = time.perf_counter()
    paths = RunPaths(out=out.absolute())
    record = read_record(paths)
    spec = SegmentSpec.from_dict(record.spec)
    prepared = reopen(spec) if spec.probabilities_from is None else reopen_refinement(spec)
    engine = _engine_of_run(record.soft)
    now = dataclasses.replace(record, hard=hard_fields(prepared.spec, prepared.scene), soft=soft_fields(prepared.spec, engine))
    changed = check_same(paths, record, now)
    blocks = Blocks(shape=prepared.scene.shape, block_px=spec.grid.block_px)
    survey = survey_journal(paths.journal, run_id=record.run_id, blocks=blocks)
    seams = _Seams(prepared, engine)
    places = choose_places(
        spec, shape=prepared.scene.shape, done=survey.states == DONE, square_px=seams.square_px, n_places=n_places
    )
    found = []
    for comparison in seams.compare(places, open_reader(paths.out, "labels")) if places else ():
        found.append(comparison)
        (on_progress or (lambda *_: None))(len(found), len(places))
    return SeamReport(
        square_px=seams.square_px,
        displaced_px=seams.displaced_px,
        engine=seams.engine_name if found else "",
        places=tuple(found),
        changed=tuple(changed),
        seconds=round(time.perf_counter() - started, 3),
    )


def _engine_of_run(soft: dict[str, Any]) -> EngineSpec:
    """Return the engine that the run had, as far as this machine has it; what is different is told as for a resume."""
    here = choose_device(EngineSpec())
    if soft["device"] == "cuda" and here != "cuda":
        return EngineSpec(device="cpu", threads=count_cores())
    is_there = soft["engine"] != "openvino" or has_openvino()
    return EngineSpec(
        device=soft["device"],
        engine=soft["engine"] if is_there else "auto",
        precision=soft["precision"],
        threads=count_cores(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What is computed for one place."""

    place: Place
    """Where."""
    square: Window
    """What is compared."""
    needed: Window
    """The pixels whose probabilities are needed: the square, or a CRF tile with its halo."""
    origin: tuple[int, int]
    """(row, column) in the scene of the lattice's first pixel."""
    lattice: Lattice
    """The network windows, one of them around the place; one is enough for a square."""

    @property
    def indices(self) -> list[tuple[int, int]]:
        """The windows of the lattice that touch what is needed, in lattice order."""
        return self.lattice.touching(self.local(self.needed))

    def local(self, window: Window) -> Window:
        """Return a window of the scene in the coordinates of the lattice."""
        return _moved(window, -self.origin[0], -self.origin[1])

    def window(self, index: tuple[int, int]) -> Window:
        """Return a window of the lattice in the coordinates of the scene."""
        return _moved(self.lattice.window(index), *self.origin)


class _Seams:
    """The run's own network and CRF, put where its grid does not put them."""

    def __init__(self, prepared: Prepared, engine: EngineSpec) -> None:
        self._prepared, self._spec, self._engine_spec = prepared, prepared.spec, engine
        grid, crf = self._spec.grid, self._spec.crf
        self._unit_px = math.lcm(
            *(prepared.network.output_stride * exactly(scale).denominator for scale in self._spec.multiscale.scales)
        )
        outer_px = 0 if grid.blend == "taper" else (margin_px(prepared.network, self._spec.multiscale) or 0) + self._unit_px // 2
        inner_px = max(1, (grid.window_px - 2 * outer_px) // 2)
        self.square_px = min(_SQUARE_PX, inner_px, grid.block_px, *([] if crf is None else [crf.tile_px]))
        room_px = max(0, (grid.window_px - self.square_px) // 2 - outer_px)
        self.displaced_px = room_px // 2 // self._unit_px * self._unit_px
        self._reading = threading.Lock()  # the network's threads read windows through one handle
        self.engine_name = ""

    def compare(self, places: list[Place], stored: Reader) -> Iterator[Comparison]:
        """Yield the comparison of each place; the network is a few windows ahead."""
        engine, model = load_engine(self._spec, self._engine_spec)
        self.engine_name = "" if engine is None else f"{engine.name} on {engine.device}"
        looks = [self._look(place) for place in places]
        with open_scene(self._spec.scene) as scene:
            scores = iter(()) if engine is None else self._scores(looks, scene, engine, model)
            for look in looks:
                tile = self._read(scene, look.needed)
                probabilities = (
                    self._recall(look) if engine is None else _blend(look, scores, engine, self._spec, len(model.classes))
                )
                yield self._compare(look, probabilities, tile, stored(look.square))

    def _look(self, place: Place) -> _Look:
        """Work out the windows for one place; reads nothing."""
        shape, crf, grid = self._prepared.scene.shape, self._spec.crf, self._spec.grid
        square = _clipped(place.square(self.square_px), shape)
        needed = square if crf is None else _clipped(place.square(crf.tile_px + 2 * crf.halo_px), shape)
        lattice = network_lattice(shape, self._spec)
        row = self._offset(place, place.row, n=lattice.n_rows)
        col = self._offset(place, place.col, n=lattice.n_cols)
        origin = _before(row, needed.row_off, grid.step_px), _before(col, needed.col_off, grid.step_px)
        extent = needed.row_end - origin[0], needed.col_end - origin[1]
        return _Look(
            place=place,
            square=square,
            needed=needed,
            origin=origin,
            lattice=dataclasses.replace(lattice, shape=extent),
        )

    def _offset(self, place: Place, centre: int, *, n: int) -> int:
        """Return where the window around a place starts along one axis: in steps of the network's cells, and as far out as the run's."""
        grid = self._spec.grid
        last = (n - 1) * grid.step_px
        start = round((centre - grid.window_px // 2) / self._unit_px) * self._unit_px
        if place.kind == "inside":
            start += self.displaced_px if start + self.displaced_px <= last else -self.displaced_px
        return min(max(start, 0), last)

    def _scores(self, looks: list[_Look], scene: Scene, engine: Engine, model: ModelSpec) -> Iterator[NDArray[np.float32]]:
        def load(window: Window) -> Callable[[], NDArray[np.float32]]:
            return lambda: normalise(self._read(scene, window), window, stretch=self._spec.stretch, model=model)

        return engine.scores(load(look.window(index)) for look in looks for index in look.indices)

    def _read(self, scene: Scene, window: Window) -> Tile:
        with self._reading:
            return read_reflected(scene, window)

    def _recall(self, look: _Look) -> NDArray[np.float32]:
        assert self._spec.probabilities_from is not None
        return dequantise(open_reader(Path(self._spec.probabilities_from), "probabilities")(look.needed))

    def _compare(self, look: _Look, probabilities: NDArray[np.float32], tile: Tile, stored: NDArray[np.uint8]) -> Comparison:
        crf = self._spec.crf
        if crf is not None:
            device = choose_device(self._engine_spec) if crf.backend == "torch" else "cpu"
            probabilities = refine_tile(
                probabilities,
                self._spec.stretch.apply(tile.pixels),
                tile.valid,
                crf,
                offset_px=(look.needed.row_off, look.needed.col_off),
                processor=Processor(threads=self._engine_spec.threads, device=device),
            )
        inside = look.square.relative_to(look.needed).to_slices()
        valid = tile.valid[inside]
        labels, _ = classify(np.ascontiguousarray(probabilities[:, *inside]), valid)
        return Comparison(
            kind=look.place.kind,
            row=look.place.row,
            col=look.place.col,
            n_pixels=int(np.count_nonzero(valid)),
            n_differ=int(np.count_nonzero((labels != stored) & valid)),
        )


def _blend(
    look: _Look, scores: Iterator[NDArray[np.float32]], engine: Engine, spec: SegmentSpec, n_classes: int
) -> NDArray[np.float32]:
    """Return the probabilities of what is needed: (classes, height, width) float32."""
    blender = blender_for(engine, look.local(look.needed), look.lattice, n_classes=n_classes, blend=spec.grid.blend)
    for index in look.indices:
        blender.add(index, next(scores))
    return blender.blended().probabilities()


def _before(start: int, needed: int, step: int) -> int:
    """Return the last of ``start``, ``start - step`` ... that lies not behind ``needed``."""
    return start - max(0, -(-(start - needed) // step)) * step


def _clipped(window: Window, shape: tuple[int, int]) -> Window:
    inside = window.clip(shape)
    assert inside is not None  # places lie in the scene
    return inside


def _moved(window: Window, rows: int, cols: int) -> Window:
    return dataclasses.replace(window, row_off=window.row_off + rows, col_off=window.col_off + cols)
