"""Which engine runs a network here?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.blend import Blender
from pipeline.engine.openvino_engine import OpenVinoEngine, has_openvino, require_openvino
from pipeline.engine.torch_engine import TorchEngine, choose_device
from pipeline.errors import SpecError
from pipeline.grid import Lattice
from pipeline.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.engine.protocol import Engine, EngineSpec, RunsNetwork
    from pipeline.network.multiscale import MultiScale


def choose_engine(spec: EngineSpec) -> RunsNetwork:
    """Return the engine that ``spec`` means here.

    ``auto``: OpenVINO on the CPU where it is installed (three to five times as fast as torch there), else torch; fp16 is torch's alone.

    Raises
    ------
    SpecError
        If OpenVINO is asked for on a CUDA device.
    MissingDependencyError
        If it is asked for and not installed.
    """
    on_cpu = choose_device(spec).type == "cpu"
    if spec.engine == "openvino":
        require_openvino()
        if not on_cpu:
            raise SpecError(
                "--engine openvino was asked for on a CUDA device; it runs on the CPU: add --device cpu, or use --engine torch"
            )
        return "openvino"
    if spec.engine == "torch" or not on_cpu or spec.precision == "fp16" or not has_openvino():
        return "torch"
    return "openvino"


def open_engine(network: MultiScale, spec: EngineSpec, *, window_px: int, cache_key: str | None = None) -> Engine:
    """Return a running network for windows of ``window_px``; ``cache_key`` says what it is where its conversion may be kept."""
    if choose_engine(spec) == "openvino":
        return OpenVinoEngine(network, spec, window_px=window_px, cache_key=cache_key)
    return TorchEngine(network, spec)


def predict_windows(engine: Engine, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities of whole windows.

    Parameters
    ----------
    engine
        The running network.
    windows
        (n, bands, side, side) float32, normalised.

    Returns
    -------
    (n, classes, side, side) float32, 0 to 1.
    """
    side = windows.shape[-1]
    target = Window.of_shape((side, side))
    lattice = Lattice(shape=(side, side), size_px=side, step_px=side)
    answers = []
    for scores in engine.scores(partial(np.asarray, window) for window in windows):
        blender = Blender(target, lattice, n_classes=len(scores), blend="taper", cells=engine.cells)
        blender.add((0, 0), scores)
        answers.append(blender.result())
    return np.stack(answers)
