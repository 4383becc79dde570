"""How are the tensors of a ResNet called in the many projects that keep torchvision's names?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Collection

    from pipeline.network.importers.keymap import KeyMap

_DEPTHS: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 2, 2), 2): "resnet18",
    ((3, 4, 6, 3), 2): "resnet34",
    ((3, 4, 6, 3), 3): "resnet50",
    ((3, 4, 23, 3), 3): "resnet101",
    ((3, 8, 36, 3), 3): "resnet152",
}
"""Backbones by the blocks of each stage and the convolutions of each block."""


def resnet_name(keys: Collection[str], prefix: str) -> str:
    """Return the backbone that ``<prefix>layer1.0.conv1.weight`` ... spell; WeightsError where it is none that can be built."""
    depths = tuple(n_blocks(keys, f"{prefix}layer{stage}.") for stage in (1, 2, 3, 4))
    n_convolutions = sum(f"{prefix}layer1.0.conv{index}.weight" in keys for index in (1, 2, 3))
    name = _DEPTHS.get((depths, n_convolutions))
    if name is None:
        raise WeightsError(
            f"the backbone has stages of {depths} blocks with {n_convolutions} convolutions each; ResNets with 18, 34, 50, 101 or "
            "152 layers can be imported"
        )
    return name


def n_blocks(keys: Collection[str], prefix: str) -> int:
    """Count the numbers that follow ``prefix`` in the keys."""
    return len({match[1] for key in keys if (match := re.match(rf"{re.escape(prefix)}(\d+)\.", key))})


def map_resnet(keys: KeyMap, names: Collection[str], prefix: str) -> None:
    """Map the backbone whose tensors are called ``<prefix>conv1.weight``, ``<prefix>layer1.0.bn1.bias`` and so on."""
    if f"{prefix}conv1.weight" in names:
        keys.normalised("backbone.stem", f"{prefix}conv1", f"{prefix}bn1")
    else:  # the three convolutions of the deep stem (mmsegmentation's V1c)
        for index in range(3):
            keys.normalised(f"backbone.stem.{index}", f"{prefix}stem.{3 * index}", f"{prefix}stem.{3 * index + 1}")
    n_convolutions = 3 if f"{prefix}layer1.0.conv3.weight" in names else 2
    for stage in range(4):
        for block in range(n_blocks(names, f"{prefix}layer{stage + 1}.")):
            ours, theirs = f"backbone.stages.{stage}.{block}", f"{prefix}layer{stage + 1}.{block}"
            for index in range(n_convolutions):
                keys.normalised(f"{ours}.branch.{index}", f"{theirs}.conv{index + 1}", f"{theirs}.bn{index + 1}")
            if block == 0 and (stage > 0 or n_convolutions == 3):  # where channels or size change
                keys.normalised(f"{ours}.shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
