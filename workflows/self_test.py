"""Does the network give here what it gives elsewhere? A small picture through the shipped model, in two ways.

::

    waves -> the engine that ``auto`` means here -> labels   | the same labels, and about as many of each class
          -> torch, fp32, on the CPU             -> labels   | as were counted when this was written
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from pipeline.engine.engines import open_engine, predict_windows
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import PipelineError
from pipeline.network.late import late_network
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.normalise import normalise
from pipeline.scene import Tile
from pipeline.stretch import Stretch
from pipeline.window import Window
from workflows.findings import Finding, ok, problem, warning

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIDE_PX = 256
_COUNTS = (10349, 7269, 38791, 9127, 0)
"""Pixels of each class in the picture, by torch in fp32 on an x86 CPU."""
_SAME = 0.999
"""At least this share of the labels must agree; what rounds otherwise changes fewer."""


def check_network() -> Finding:
    """Run the shipped model on a picture that is made up here."""
    started = time.perf_counter()
    try:
        reference = network_labels(EngineSpec(device="cpu", engine="torch", precision="fp32"))
        found = network_labels(EngineSpec())
    except (PipelineError, RuntimeError) as error:
        return problem(
            "model", f"{DEFAULT_MODEL} does not run: {error}", "install atrous again; if that does not help, report it"
        )
    agree = float(np.mean(found == reference))
    off = np.abs(np.bincount(reference.ravel(), minlength=len(_COUNTS)) - _COUNTS).sum() / 2
    seconds = time.perf_counter() - started
    if 1 - off / reference.size < _SAME:
        return problem(
            "model",
            f"{DEFAULT_MODEL} gives other labels than it should in torch: {off:.0f} of {reference.size} pixels",
            "install atrous and torch again; if that does not help, report it",
        )
    text = (
        f"{100 * agree:.2f} % of {DEFAULT_MODEL}'s labels in a test picture are those of torch fp32 on the CPU ({seconds:.1f} s)"
    )
    if agree < _SAME:
        return warning("model", text, "99.9 % is usual: use --engine torch, or --device cpu, and report it")
    return ok("model", text)


def network_labels(spec: EngineSpec) -> NDArray[np.intp]:
    """Return the shipped model's labels of the picture: (side, side) class ids."""
    model, network = late_network(resolve_model(DEFAULT_MODEL))
    engine = open_engine(network, spec, window_px=_SIDE_PX)
    window = Window.of_shape((_SIDE_PX, _SIDE_PX))
    tile = Tile(window=window, pixels=picture(), valid=np.ones(window.shape, bool))
    stretch = Stretch(low=(0.0,) * 3, high=(255.0,) * 3)
    normalised = normalise(tile, window, stretch=stretch, model=model)
    return np.asarray(predict_windows(engine, normalised[np.newaxis])[0].argmax(axis=0))


def picture() -> NDArray[np.uint8]:
    """Return fields, roads and roofs of a sort: (3, side, side) u1."""
    rows, cols = np.indices((_SIDE_PX, _SIDE_PX)).astype(np.float64)
    waves = 18 * np.sin(rows / 7) * np.cos(cols / 5) + 12 * np.sin((rows + cols) / 3)
    colors = np.array([[150, 140, 120], [90, 110, 70], [60, 80, 100], [200, 195, 185]], float)
    plots = ((rows // 64).astype(int) + 3 * (cols // 64).astype(int)) % 4
    roads = (np.abs(rows % 64 - 32) < 4) | (np.abs(cols % 128 - 64) < 5)
    values = np.where(roads, 110.0, np.moveaxis(colors[plots], -1, 0)) + waves
    return np.asarray(np.clip(values, 0, 255).round(), np.uint8)
