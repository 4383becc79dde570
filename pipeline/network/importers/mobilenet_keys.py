"""How are the tensors of a MobileNetV2 called in the projects that keep torchvision's ``features``?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.network.importers.keymap import KeyMap

N_BLOCKS = 17


def map_mobilenet(keys: KeyMap, feature: Callable[[int], str], *, expansion: bool) -> None:
    """Map the backbone.

    Parameters
    ----------
    keys
        Where the sources are added.
    feature
        Returns what their layer ``i`` of ``features`` is called: 0 is the stem, 1 to 17 the blocks, 18 the last expansion.
    expansion
        Whether the last expansion is part of the network.
    """
    keys.normalised("backbone.stem", f"{feature(0)}.0", f"{feature(0)}.1")
    for index in range(N_BLOCKS):
        _map_block(keys, f"backbone.blocks.{index}", f"{feature(index + 1)}.conv", has_expansion=index > 0)
    if expansion:
        last = feature(N_BLOCKS + 1)
        keys.normalised("backbone.last", f"{last}.0", f"{last}.1")


def _map_block(keys: KeyMap, ours: str, theirs: str, *, has_expansion: bool) -> None:
    layers = ["expand", "depthwise"] if has_expansion else ["depthwise"]
    for index, layer in enumerate(layers):
        keys.normalised(f"{ours}.{layer}", f"{theirs}.{index}.0", f"{theirs}.{index}.1")
    keys.normalised(f"{ours}.project", f"{theirs}.{len(layers)}", f"{theirs}.{len(layers) + 1}")
