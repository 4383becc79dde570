"""How does one block become labels? The whole story, top to bottom.

::

    locate -> read -> predict (or recall) -> refine -> label

The result covers the block's write window only, depends on nothing but the scene and the job, and is written by the caller.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from pipeline.blend import Blender
from pipeline.blended import BlendedHere
from pipeline.crf.tile import refine_tile
from pipeline.engine.engines import blender_for, loader_for, part_blender_for
from pipeline.errors import BlockError, SourceError, StoreError
from pipeline.grid import Lattice
from pipeline.labels import dequantise
from pipeline.locate import BlockWindows, crf_lattice, locate, network_lattice, with_halo
from pipeline.network.cells import Cells
from pipeline.scene import Scene, Tile, read_reflected
from pipeline.seen_windows import NO_SCORES, SeenWindows
from pipeline.store import read_array
from pipeline.window import Window, hull
from pipeline.workplace import Workplace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.blended import Blended
    from pipeline.crf.energy import CrfSpec
    from pipeline.engine.protocol import Engine, Load
    from pipeline.network.spec import ModelSpec
    from pipeline.spec import SegmentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockResult:
    """The finished pixels of one block."""

    labels: NDArray[np.uint8]
    """(height, width) u1, 255 at nodata."""
    confidence: NDArray[np.uint8]
    """(height, width) u1, probability x 255."""
    probabilities: NDArray[np.uint8] | None
    """(classes, height, width) u1, probability x 255, before the CRF; None unless asked for."""


def segment_block(
    index: tuple[int, int],
    *,
    scene: Scene,
    engine: Engine | None,
    model: ModelSpec,
    spec: SegmentSpec,
    workplace: Workplace | None = None,
) -> BlockResult | None:
    """Segment the block ``index`` = (row, column) of the scene; None where the block holds nodata only.

    ``engine`` is None where ``spec`` names an earlier output whose probabilities are refined.
    """
    workplace = workplace or Workplace()
    clock, seen = workplace.clock, workplace.seen
    windows = locate(index, shape=scene.info.shape, spec=spec)
    with contextlib.ExitStack() as stack:
        leave_entry = stack.enter_context(workplace.held("entry"))
        to_read = _still_to_read(windows, spec, seen)
        stack.enter_context(seen.promised(windows.shared))
        with clock.stage("read"):
            tile = read_reflected(scene, to_read)
        if not _valid_written(tile, windows).any():
            return None
        stack.enter_context(workplace.held("room"))
        if engine is None:
            leave_turn = stack.enter_context(workplace.held("turn"))
            with clock.stage("recall"):
                blended: Blended = BlendedHere(recall(tile, windows, spec=spec))
        else:
            blended, leave_turn = _see(scene, tile, windows, stack, engine=engine, model=model, spec=spec, workplace=workplace)
        leave_entry()
        inside = windows.write.relative_to(windows.predict).to_slices()
        if spec.crf is not None:
            tile = tile.crop(windows.predict)  # what only the network needed is given back
            labels, confidence = refine(blended, tile, windows, spec=spec, crf=spec.crf, workplace=workplace)
        elif engine and engine.device != "cpu":
            leave_turn()  # the device goes on with the next block
        with clock.stage("label"):
            valid = _valid_written(tile, windows)
            if spec.crf is None:
                labels, confidence = blended.classify(inside, valid)
            stored = blended.quantise(inside, valid) if spec.output.probabilities else None
    return BlockResult(labels=labels, confidence=confidence, probabilities=stored)


def _see(  # noqa: PLR0913
    scene: Scene,
    tile: Tile,
    windows: BlockWindows,
    stack: contextlib.ExitStack,
    *,
    engine: Engine,
    model: ModelSpec,
    spec: SegmentSpec,
    workplace: Workplace,
) -> tuple[Blended, Callable[[], None]]:
    """Take the turn, and return what the network and earlier blocks say of a block, and what leaves the turn."""
    clock, seen = workplace.clock, workplace.seen
    load: Callable[[Window], Load] | None
    with clock.stage("network"):
        load = loader_for(engine, tile, stretch=spec.stretch, model=model)
    leave_turn = stack.enter_context(workplace.held("turn"))
    with clock.stage("network"):
        known, enough = _remember(scene, tile, windows, spec, seen)
        load = load if enough is tile else None
        threads = workplace.processor.threads
        blended = predict(
            enough, windows, engine=engine, model=model, spec=spec, seen=seen, known=known, load=load, threads=threads
        )
    return blended, leave_turn


def predict(  # noqa: PLR0913
    tile: Tile,
    windows: BlockWindows,
    *,
    engine: Engine,
    model: ModelSpec,
    spec: SegmentSpec,
    seen: SeenWindows | None = None,
    known: Mapping[tuple[int, int], NDArray[np.float32]] = MappingProxyType({}),
    load: Callable[[Window], Load] | None = None,
    threads: int = 1,
) -> Blended:
    """Run the network over the windows of a block and blend: the probabilities over ``windows.predict``, where the engine is.

    Those that are ``known`` are not computed again, and ``tile`` need not cover them; what later blocks need is given to ``seen``. ``load``
    is ``tile`` as `loader_for` gives it, where that has been done already. ``threads`` blend, where it is done tile by tile of the CRF.
    """
    lattice = network_lattice(windows.shape, spec)
    n_classes, blend = len(model.classes), spec.grid.blend
    blender = (
        blender_for(engine, windows.predict, lattice, n_classes=n_classes, blend=blend)
        if spec.crf is None
        else part_blender_for(engine, windows.predict, lattice, n_classes=n_classes, blend=blend, threads=threads)
    )
    seen = seen or SeenWindows(0)
    load = load or loader_for(engine, tile, stretch=spec.stretch, model=model)
    empty = {index for index in windows.network if index not in known and not _sees_data(tile, lattice.window(index))}
    fresh = engine.scores(load(lattice.window(index)) for index in windows.network if index not in known and index not in empty)
    for index in windows.network:
        scores = known.get(index)
        if scores is None:
            scores = NO_SCORES if index in empty else next(fresh)
            _check_finite(scores, lattice.window(index))
            seen.keep(index, scores, uses=windows.shared.get(index, 0))
        if scores.size:
            blender.add(index, scores)
    return blender.blended()


def recall(tile: Tile, windows: BlockWindows, *, spec: SegmentSpec) -> NDArray[np.float32]:
    """Read what the network said in an earlier run: (classes, height, width) float32 over ``windows.predict``, in steps of 1/255."""
    assert spec.probabilities_from is not None
    try:
        stored = read_array(Path(spec.probabilities_from), "probabilities", windows.predict)
    except StoreError as error:
        raise SourceError(str(error)) from error  # it is this run's input
    if bool((tile.valid & ~stored.any(axis=0)).any()):
        raise SourceError(
            f"{spec.probabilities_from} has pixels without any probability in {windows.predict}; every pixel with data needs them: a "
            "chunk is missing, run `atrous resume` on that output"
        )
    return dequantise(stored)


def refine(
    blended: Blended,
    tile: Tile,
    windows: BlockWindows,
    *,
    spec: SegmentSpec,
    crf: CrfSpec,
    workplace: Workplace | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Refine every CRF tile of a block, and return labels and confidence of what it writes: (height, width) u1 over ``windows.write``.

    A tile's probabilities and marginals are gone when the next one is refined: those of a whole block would be its largest arrays.
    """
    workplace = workplace or Workplace()
    labels, confidence = np.empty((2, *windows.write.shape), np.uint8)
    valid = _valid_written(tile, windows)

    def label(index: tuple[int, int]) -> None:
        written, marginals = _refine_one(index, blended, tile, windows, spec=spec, crf=crf, workplace=workplace)
        with workplace.clock.stage("label"):
            onto = written.relative_to(windows.write).to_slices()
            labels[onto], confidence[onto] = marginals.classify(np.s_[:, :], valid[onto])

    for index in windows.crf:
        label(index)
    return labels, confidence


def _refine_one(  # noqa: PLR0913
    index: tuple[int, int],
    blended: Blended,
    tile: Tile,
    windows: BlockWindows,
    *,
    spec: SegmentSpec,
    crf: CrfSpec,
    workplace: Workplace,
) -> tuple[Window, BlendedHere]:
    """Return what a block writes of a CRF tile, and the marginals there."""
    core = crf_lattice(windows.shape, crf).window(index)
    read = with_halo(core, crf, windows.shape)
    kept = core.clip(windows.shape)
    assert kept is not None
    inside = read.relative_to(tile.window).to_slices()
    with workplace.clock.stage("network" if windows.network else "recall"):
        probabilities = blended.probabilities(read.relative_to(windows.predict).to_slices())
    with workplace.clock.stage("crf"):
        marginals = refine_tile(
            probabilities,
            spec.stretch.apply(tile.pixels[:, *inside]),
            tile.valid[inside],
            crf,
            offset_px=(read.row_off, read.col_off),
            core=kept.relative_to(read),
            processor=workplace.processor,
        )
    written = kept.intersect(windows.write)
    assert written is not None
    return written, BlendedHere(marginals[:, *written.relative_to(read).to_slices()])


def warm_up(n_classes: int) -> None:
    """Load the compiled loops that blend and classify: from the cache it takes half a second, the first time of all some seconds."""
    one = Window.of_shape((1, 1))
    blender = Blender(one, Lattice(shape=(1, 1), size_px=1, step_px=1), n_classes=n_classes, blend="taper", cells=Cells())
    blender.add((0, 0), np.zeros((n_classes, 1, 1), np.float32))
    blender.blended().classify((slice(1), slice(1)), np.ones((1, 1), bool))


def _still_to_read(windows: BlockWindows, spec: SegmentSpec, seen: SeenWindows) -> Window:
    """Return the pixels that a block needs if all that earlier blocks leave is there when it computes."""
    lattice = network_lattice(windows.shape, spec)
    return hull([windows.predict, *(lattice.window(index) for index in windows.network if not seen.expects(index))])


def _remember(
    scene: Scene, tile: Tile, windows: BlockWindows, spec: SegmentSpec, seen: SeenWindows
) -> tuple[dict[tuple[int, int], NDArray[np.float32]], Tile]:
    """Return the scores that earlier blocks left, and the pixels of all other windows: read again where less was left than expected."""
    lattice = network_lattice(windows.shape, spec)
    seen.pass_row(windows.network[0][0])
    known = {index: scores for index in windows.network if (scores := seen.take(index)) is not None}
    is_enough = all(index in known or tile.window.contains(lattice.window(index)) for index in windows.network)
    return known, tile if is_enough else read_reflected(scene, windows.read)


def _check_finite(scores: NDArray[np.float32], window: Window) -> None:
    """Raise BlockError where the network overflowed: argmax would make a class of NaN."""
    if not np.isfinite(scores).all():
        raise BlockError(
            f"the network gave values that are no numbers in {window}; finite probabilities were expected: use --precision fp32, and "
            "check the scene for values far outside the model's range (--stretch)"
        )


def _valid_written(tile: Tile, windows: BlockWindows) -> NDArray[np.bool_]:
    """Return which of the pixels that a block writes have data."""
    return tile.valid[windows.write.relative_to(tile.window).to_slices()]


def _sees_data(tile: Tile, window: Window) -> bool:
    """Tell whether a network window has a valid pixel; without one it could only colour nodata."""
    return bool(tile.valid[window.relative_to(tile.window).to_slices()].any())
