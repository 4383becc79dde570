"""Compare the CRF in tiles with the CRF of a whole scene, for several tiles and halos, and print a table (Markdown).

    python tests/benchmarks/crf_halo.py [--side 4096] [--tiles 1024,2048] [--halos 0,67,134,default,268]

The scene is composed: mirrored copies of the sample scene. So are its probabilities, the shipped model's. The whole
scene at once needs 5 GB.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
from typing import TYPE_CHECKING

import numpy as np

from pipeline.crf.energy import CrfSpec
from pipeline.crf.tile import Processor, refine_tile
from pipeline.engine.protocol import EngineSpec
from pipeline.engine.torch_engine import TorchEngine
from pipeline.grid import Lattice
from pipeline.locate import locate
from pipeline.network.checkpoint import load_network
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.multiscale import MultiScale
from pipeline.network.spec import MultiScaleSpec
from pipeline.scene import SceneSpec, open_scene, read_reflected
from pipeline.segment import predict
from pipeline.spec import GridSpec, SegmentSpec
from pipeline.stretch import Stretch
from pipeline.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCENE = "examples/dubai-tile2.tif"
NEAR_PX = 64
"""What counts as near a tile's edge."""
PROCESSOR = Processor(threads=os.cpu_count() or 1)


def inputs(side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return probabilities and guide of the composed scene: (classes or bands, side, side)."""
    model, network = load_network(resolve_model(DEFAULT_MODEL))
    spec = SegmentSpec(
        scene=SceneSpec(uri=SCENE, bands=(1, 2, 3)),
        model_path=DEFAULT_MODEL,
        model_sha256="",
        stretch=Stretch.identity(3),
        grid=GridSpec(block_px=2048),  # the scene is one block
    )
    with open_scene(spec.scene) as scene:
        shape = scene.info.shape
        windows = locate((0, 0), shape=shape, spec=spec)
        tile = read_reflected(scene, windows.read)
    engine = TorchEngine(MultiScale(network, MultiScaleSpec()), EngineSpec(device="cpu"))
    real = predict(tile, windows, engine=engine, model=model, spec=spec).probabilities()
    guide = spec.stretch.apply(tile.pixels[:, *windows.predict.relative_to(windows.read).to_slices()])
    rows, cols = (np.pad(np.arange(n), (0, max(0, side - n)), mode="reflect")[:side] for n in shape)
    return tuple(np.ascontiguousarray(array[:, rows][:, :, cols]) for array in (real, guide))


def in_tiles(probabilities: NDArray[np.float32], guide: NDArray[np.float32], spec: CrfSpec, halo_px: int) -> NDArray[np.intp]:
    """Return the labels of a scene that is refined tile by tile, (height, width)."""
    shape = guide.shape[1], guide.shape[2]
    lattice = Lattice(shape=shape, size_px=spec.tile_px, step_px=spec.tile_px)
    labels = np.empty(shape, np.intp)
    for index in lattice.touching(Window(row_off=0, col_off=0, height=shape[0], width=shape[1])):
        core = lattice.window(index).clip(shape)
        read = lattice.window(index).grow(halo_px).clip(shape)
        assert core is not None
        assert read is not None
        where = read.to_slices()
        tile = (np.ascontiguousarray(probabilities[:, *where]), np.ascontiguousarray(guide[:, *where]), np.ones(read.shape, bool))
        inner = core.relative_to(read)
        refined = refine_tile(*tile, spec, offset_px=(read.row_off, read.col_off), core=inner, processor=PROCESSOR)
        labels[core.to_slices()] = refined.argmax(axis=0)[inner.to_slices()]
    return labels


def main() -> None:
    """Refine the whole scene, then in tiles of every size with every halo, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--tiles", default="1024,2048")
    parser.add_argument("--halos", default="0,67,134,default,268")
    given = parser.parse_args()
    probabilities, guide = inputs(given.side)
    spec = CrfSpec()
    whole = refine_tile(probabilities, guide, np.ones(guide.shape[1:], bool), spec, processor=PROCESSOR).argmax(axis=0)
    changed = (whole != probabilities.argmax(axis=0)).mean()
    energy = {name: value for name, value in dataclasses.asdict(spec).items() if name.startswith(("theta", "w_", "n_"))}
    sys.stdout.write(f"{given.side} x {given.side} px, {energy}; the CRF changes {100 * changed:.1f} %\n\n")
    heads = (
        "tile, px",
        "halo, px",
        "labels that differ",
        f"within {NEAR_PX} px of a tile's edge",
        "elsewhere",
        "times its own pixels",
    )
    sys.stdout.write(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n")
    for tile_px, name in itertools.product(map(int, given.tiles.split(",")), given.halos.split(",")):
        halo_px = spec.halo_px if name == "default" else int(name)
        differ = in_tiles(probabilities, guide, dataclasses.replace(spec, tile_px=tile_px), halo_px) != whole
        near = _near_edges(given.side, tile_px)
        shares = " | ".join(f"{100 * float(part.mean()):.3f} %" for part in (differ, differ[near], differ[~near]))
        label = f"**{halo_px} (default)**" if name == "default" else str(halo_px)
        sys.stdout.write(f"| {tile_px} | {label} | {shares} | {((tile_px + 2 * halo_px) / tile_px) ** 2:.2f} |\n")
        sys.stdout.flush()


def _near_edges(side: int, tile_px: int) -> NDArray[np.bool_]:
    away = np.arange(side) % tile_px
    away = np.minimum(away, tile_px - 1 - away)
    return np.minimum(away[:, np.newaxis], away[np.newaxis]) < NEAR_PX


if __name__ == "__main__":
    main()
