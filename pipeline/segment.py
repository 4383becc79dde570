"""How does one block become labels? The whole story, top to bottom.

::

    locate -> read -> predict (or recall) -> refine -> label

The result covers the block's write window only, depends on nothing but the scene and the job, and is written by the caller.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.blend import Blender
from pipeline.crf.tile import ONE_THREAD, Processor, refine_tile
from pipeline.errors import BlockError, SourceError, StoreError
from pipeline.grid import Blocks, Lattice
from pipeline.labels import dequantise, label, quantise
from pipeline.normalise import normalise
from pipeline.scene import Scene, Tile, read_reflected
from pipeline.store import read_array
from pipeline.window import Window, hull

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.crf.energy import CrfSpec
    from pipeline.engine.protocol import Engine
    from pipeline.network.spec import ModelSpec
    from pipeline.spec import SegmentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWindows:
    """What one block writes, and all that it needs for it."""

    shape: tuple[int, int]
    """(height, width) of the scene, px."""
    write: Window
    """The pixels that the block alone writes."""
    predict: Window
    """The pixels whose probabilities it needs: the write window, with the CRF tiles that touch it and their halos."""
    network: tuple[tuple[int, int], ...]
    """Lattice indices of the network windows that touch ``predict``, in lattice order; none where probabilities are recalled."""
    crf: tuple[tuple[int, int], ...]
    """Lattice indices of the CRF tiles that touch ``write``."""
    read: Window
    """The hull of the network windows, which may reach past the scene; without them the same as ``predict``."""


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
    processor: Processor = ONE_THREAD,
) -> BlockResult | None:
    """Segment the block ``index`` = (row, column) of the scene; None where the block holds nodata only.

    ``engine`` is None where ``spec`` names an earlier output whose probabilities are refined; ``processor`` is what the CRF runs on.
    """
    windows = locate(index, shape=scene.info.shape, spec=spec)
    tile = read_reflected(scene, windows.read)
    valid = tile.valid[windows.write.relative_to(windows.read).to_slices()]
    if not valid.any():
        return None
    blended = (
        recall(tile, windows, spec=spec) if engine is None else predict(tile, windows, engine=engine, model=model, spec=spec)
    )
    inside = windows.write.relative_to(windows.predict).to_slices()
    refined = (
        blended[:, *inside] if spec.crf is None else refine(blended, tile, windows, spec=spec, crf=spec.crf, processor=processor)
    )
    labels, confidence = label(refined, valid)
    return BlockResult(
        labels=labels,
        confidence=confidence,
        probabilities=quantise(blended[:, *inside] * valid) if spec.output.probabilities else None,
    )


def locate(index: tuple[int, int], *, shape: tuple[int, int], spec: SegmentSpec) -> BlockWindows:
    """Work out the windows of one block in a scene of ``shape`` (height, width); reads nothing."""
    write = Blocks(shape=shape, block_px=spec.grid.block_px).window(index)
    tiles: list[tuple[int, int]] = []
    needed = write
    if spec.crf is not None:
        lattice = crf_lattice(shape, spec.crf)
        tiles = lattice.touching(write)
        needed = hull(_with_halo(lattice.window(tile), spec.crf, shape) for tile in tiles)
    lattice = network_lattice(shape, spec)
    network = lattice.touching(needed) if spec.probabilities_from is None else []
    return BlockWindows(
        shape=shape,
        write=write,
        predict=needed,
        network=tuple(network),
        crf=tuple(tiles),
        read=hull(lattice.window(window) for window in network) if network else needed,
    )


def predict(tile: Tile, windows: BlockWindows, *, engine: Engine, model: ModelSpec, spec: SegmentSpec) -> NDArray[np.float32]:
    """Run the network over all windows of a block and blend: (classes, height, width) float32 over ``windows.predict``."""
    lattice = network_lattice(windows.shape, spec)
    blender = Blender(windows.predict, lattice, n_classes=len(model.classes), blend=spec.grid.blend)
    seen = (index for index in windows.network if _sees_data(tile, lattice.window(index)))
    while batch := list(itertools.islice(seen, engine.batch_size)):
        pixels = [normalise(tile, lattice.window(index), stretch=spec.stretch, model=model) for index in batch]
        for index, probabilities in zip(batch, engine.predict(np.stack(pixels)), strict=True):
            _check_finite(probabilities, lattice.window(index))
            blender.add(index, probabilities)
    return blender.result()


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
    blended: NDArray[np.float32],
    tile: Tile,
    windows: BlockWindows,
    *,
    spec: SegmentSpec,
    crf: CrfSpec,
    processor: Processor = ONE_THREAD,
) -> NDArray[np.float32]:
    """Refine every CRF tile of a block and keep what the block writes: (classes, height, width) float32 over ``windows.write``."""
    lattice = crf_lattice(windows.shape, crf)
    refined = np.empty((blended.shape[0], *windows.write.shape), np.float32)
    for index in windows.crf:
        core = lattice.window(index)
        read = _with_halo(core, crf, windows.shape)
        inside = read.relative_to(tile.window).to_slices()
        marginals = refine_tile(
            blended[:, *read.relative_to(windows.predict).to_slices()],
            spec.stretch.apply(tile.pixels[:, *inside]),
            tile.valid[inside],
            crf,
            offset_px=(read.row_off, read.col_off),
            processor=processor,
        )
        kept = core.intersect(windows.write)
        assert kept is not None
        onto = kept.relative_to(windows.write).to_slices()
        refined[:, *onto] = marginals[:, *kept.relative_to(read).to_slices()]
    return refined


def network_lattice(shape: tuple[int, int], spec: SegmentSpec) -> Lattice:
    """Return the lattice of network windows over a scene of ``shape`` (height, width)."""
    return Lattice(shape=shape, size_px=spec.grid.window_px, step_px=spec.grid.step_px)


def crf_lattice(shape: tuple[int, int], crf: CrfSpec) -> Lattice:
    """Return the partition into CRF tiles of a scene of ``shape`` (height, width)."""
    return Lattice(shape=shape, size_px=crf.tile_px, step_px=crf.tile_px)


def _check_finite(probabilities: NDArray[np.float32], window: Window) -> None:
    """Raise BlockError where the network overflowed: argmax would make a class of NaN."""
    if not np.isfinite(probabilities).all():
        raise BlockError(
            f"the network gave values that are no numbers in {window}; finite probabilities were expected: use --precision fp32, and "
            "check the scene for values far outside the model's range (--stretch)"
        )


def _with_halo(core: Window, crf: CrfSpec, shape: tuple[int, int]) -> Window:
    grown = core.grow(crf.halo_px).clip(shape)
    assert grown is not None
    return grown


def _sees_data(tile: Tile, window: Window) -> bool:
    """Tell whether a network window has a valid pixel; without one it could only colour nodata."""
    return bool(tile.valid[window.relative_to(tile.window).to_slices()].any())
