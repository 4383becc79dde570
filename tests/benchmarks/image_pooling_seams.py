"""What does each choice of ``--image-pooling`` do to tiles? Prints a table for a model with an image-level branch and a scene.

    python tests/benchmarks/image_pooling_seams.py MODEL.safetensors SCENE [--window 512] [--overlap 128]

Only pixels further from the scene's edges than the margin are looked at: nearer ones also see where a window ends in the scene's
reflection. Columns, all in percent:

* ``taper``: pixels whose label differs between tiles with the default blending and one window over the whole scene, same choice
* ``exact``: the same with hard cuts and an overlap of twice the margin, where nothing but the branch can make tiles differ
* ``step``: how much more the probabilities change from pixel to pixel across those cuts than across the same lines in one window
* ``own``: pixels whose label differs between one window over the whole scene and what the network gives it as trained (``window``)
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.protocol import EngineSpec
from pipeline.engine.torch_engine import TorchEngine
from pipeline.locate import locate
from pipeline.network.checkpoint import load_network
from pipeline.network.image_pooling import assemble
from pipeline.network.receptive_field import margin_px
from pipeline.scene import Scene, SceneSpec, open_scene, read_reflected
from pipeline.scene_means import measure_scene_means
from pipeline.segment import predict
from pipeline.spec import Blend, GridSpec, SegmentSpec
from pipeline.stretch import estimate_stretch

if TYPE_CHECKING:
    from pipeline.network.choices import ImagePooling

MODES: tuple[ImagePooling, ...] = ("window", "global", "off")
Probabilities = NDArray[np.float32]


def main() -> None:
    """Print the table."""
    arguments = _arguments()
    with open_scene(SceneSpec(uri=str(arguments.scene), bands=(1, 2, 3))) as scene:
        runs = {mode: _Runs(arguments.model, scene, mode) for mode in MODES}
        inner = _inner(scene, runs["window"].margin_px)
        own = runs["window"].whole()[inner]
        out = sys.stdout
        out.write(f"{arguments.scene.name}, {scene.info.width} x {scene.info.height} px, {arguments.model.name}\n")
        out.write("| image pooling | taper | exact | step | own |\n|---|---|---|---|---|\n")
        for mode, run in runs.items():
            taper = run.tiled(window_px=arguments.window, overlap_px=arguments.overlap, blend="taper")
            overlap, step_px = 2 * run.margin_px, arguments.window // 4
            exact = run.tiled(window_px=overlap + step_px, overlap_px=overlap, blend="exact")
            taper, exact, whole = (probabilities[inner] for probabilities in (taper, exact, run.whole()))
            cuts = range(step_px, whole.shape[2], step_px)
            row = [_differ(taper, whole), _differ(exact, whole), _step(exact, whole, cuts), _differ(whole, own)]
            out.write(f"| `{mode}` | {' | '.join(f'{100 * share:.2f}' for share in row)} |\n")


class _Runs:
    """One model on one scene with one choice of image pooling."""

    def __init__(self, model: Path, scene: Scene, mode: ImagePooling) -> None:
        self._model, self._network = load_network(model)
        self._scene, self._mode = scene, mode
        self.margin_px = margin_px(dataclasses.replace(self._network.spec, image_pooling="off")) or 0

    def whole(self) -> Probabilities:
        """Return the probabilities of one window over the scene: (classes, height, width)."""
        stride = self._network.spec.output_stride
        side = -(-max(self._scene.info.shape) // stride) * stride
        return self.tiled(window_px=side, overlap_px=0, blend="taper")

    def tiled(self, *, window_px: int, overlap_px: int, blend: Blend) -> Probabilities:
        """Return the blended probabilities of windows."""
        block_px = -(-max(self._scene.info.shape) // 1024) * 1024
        spec = SegmentSpec(
            scene=SceneSpec(uri="open already", bands=(1, 2, 3)),
            model_path="loaded already",
            model_sha256="",
            stretch=estimate_stretch(self._scene),
            grid=GridSpec(window_px=window_px, overlap_px=overlap_px, blend=blend, block_px=block_px),
            multiscale=self._model.multiscale,
        )
        means: tuple[tuple[float, ...], ...] = ()
        if self._mode == "global":
            means = measure_scene_means(self._scene, self._network, model=self._model, spec=spec)
        system = assemble(self._network, self._model.multiscale, mode=self._mode, scene_means=means)
        windows = locate((0, 0), shape=self._scene.info.shape, spec=spec)
        tile = read_reflected(self._scene, windows.read)
        engine = TorchEngine(system, EngineSpec(device="cpu", threads=2))
        return predict(tile, windows, engine=engine, model=self._model, spec=spec).probabilities()


def _inner(scene: Scene, margin: int) -> tuple[slice, slice, slice]:
    rows, cols = (slice(margin, side - margin) for side in scene.info.shape)
    return slice(None), rows, cols


def _differ(one: Probabilities, other: Probabilities) -> float:
    return float((one.argmax(axis=0) != other.argmax(axis=0)).mean())


def _step(tiled: Probabilities, whole: Probabilities, cuts: range) -> float:
    """Return the excess of the change across the cuts, as a share of the change there in one window."""

    def change(values: Probabilities) -> float:
        return float(np.mean([np.abs(values[:, :, cut] - values[:, :, cut - 1]).mean() for cut in cuts]))

    return change(tiled) / change(whole) - 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
