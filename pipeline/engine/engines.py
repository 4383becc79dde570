"""Which engine runs a network here, and what takes windows to it and scores from it?

torch, which takes a second to import, is needed for engines of its own and for what they do on devices, and is imported there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.blend import Blender, PartBlender
from pipeline.engine.choose import choose_device, choose_engine
from pipeline.engine.openvino_engine import OpenVinoEngine
from pipeline.grid import Lattice
from pipeline.normalise import normalise
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from pipeline.blended import Blended
    from pipeline.engine.on_device import DeviceBlender
    from pipeline.engine.protocol import Engine, EngineSpec, Load
    from pipeline.network.late import LateNetwork
    from pipeline.network.spec import ModelSpec
    from pipeline.scene import Tile
    from pipeline.spec import Blend
    from pipeline.stretch import Stretch


def open_engine(network: LateNetwork, spec: EngineSpec, *, window_px: int, cache_key: str | None = None) -> Engine:
    """Return a running network for windows of ``window_px``; ``cache_key`` says what it is where its conversion may be kept."""
    if choose_engine(spec) == "openvino":
        return OpenVinoEngine(network, spec, window_px=window_px, cache_key=cache_key)
    device = choose_device(spec)
    if device == "cpu":
        from pipeline.engine.torch_engine import TorchEngine  # noqa: PLC0415  (torch)

        return TorchEngine(network.load(), spec)
    import torch  # noqa: PLC0415  (a second)

    from pipeline.engine.device_engine import DeviceEngine  # noqa: PLC0415  (torch)

    return DeviceEngine(network.load(), spec, device=torch.device(device), window_px=window_px)


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
    loads = [partial(np.asarray, window) for window in windows]
    return np.stack([one.probabilities() for one in predict_loaded(engine, loads, side_px=windows.shape[-1])])


def predict_loaded(engine: Engine, loads: Iterable[Load], *, side_px: int) -> Iterator[Blended]:
    """Yield the probabilities of whole windows of ``side_px`` as they come, where the engine is.

    ``loads`` give them as `Engine.scores` takes them.
    """
    target = Window.of_shape((side_px, side_px))
    lattice = Lattice(shape=(side_px, side_px), size_px=side_px, step_px=side_px)
    for scores in engine.scores(loads):
        blender = blender_for(engine, target, lattice, n_classes=len(scores), blend="taper")
        blender.add((0, 0), scores)
        yield blender.blended()


def blender_for(engine: Engine, target: Window, lattice: Lattice, *, n_classes: int, blend: Blend) -> Blender | DeviceBlender:
    """Return what blends windows where the engine is."""
    if engine.device == "cpu":
        return Blender(target, lattice, n_classes=n_classes, blend=blend, cells=engine.cells)
    import torch  # noqa: PLC0415  (a second)

    from pipeline.engine.on_device import DeviceBlender  # noqa: PLC0415  (torch)

    device = torch.device(engine.device)
    return DeviceBlender(target, lattice, n_classes=n_classes, blend=blend, cells=engine.cells, device=device)


def part_blender_for(
    engine: Engine, target: Window, lattice: Lattice, *, n_classes: int, blend: Blend, threads: int
) -> Blender | DeviceBlender | PartBlender:
    """Return what blends windows for who asks for one part after the other: on the CPU, where scores are less than their pixels, then."""
    if engine.device == "cpu" and engine.cells.factor > 1:
        return PartBlender(target, lattice, n_classes=n_classes, blend=blend, cells=engine.cells, threads=threads)
    return blender_for(engine, target, lattice, n_classes=n_classes, blend=blend)


def loader_for(engine: Engine, tile: Tile, *, stretch: Stretch, model: ModelSpec) -> Callable[[Window], Load]:
    """Return what makes of a network window of a tile what `Engine.scores` takes; on a device, the tile is copied there first."""
    if engine.device == "cpu":
        return lambda window: partial(normalise, tile, window, stretch=stretch, model=model)
    import torch  # noqa: PLC0415  (a second)

    from pipeline.engine.on_device import DeviceTile  # noqa: PLC0415  (torch)

    return DeviceTile(tile, stretch=stretch, model=model, device=torch.device(engine.device)).load
