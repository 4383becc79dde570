"""How are the tensors of an EfficientNet called in the projects that keep the names of EfficientNet-PyTorch (lukemelas)?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.network.backbones.efficientnet_lite import STAGES

if TYPE_CHECKING:
    from pipeline.network.importers.keymap import KeyMap

STEM_KEY = "_conv_stem.weight"
"""By this they are recognised."""


def map_efficientnet(keys: KeyMap) -> None:
    """Map the backbone of EfficientNet-Lite0 without the last expansion; ``keys`` is where the sources are added."""
    keys.normalised("backbone.stem", "_conv_stem", "_bn0")
    for index in range(sum(stage.n_blocks for stage in STAGES)):
        ours, theirs = f"backbone.blocks.{index}", f"_blocks.{index}"
        if index > 0:
            keys.normalised(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        keys.normalised(f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        keys.normalised(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
