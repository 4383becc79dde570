"""Checkpoints of kazuto1011's deeplab-pytorch: DeepLab v2 on ResNet-101, trained there or converted from the authors' Caffe models.

Layers are shifted by one (``layer1`` is the stem), blocks hold ``reduce``, ``conv3x3``, ``increase`` and ``shortcut``. Pixels are blue,
green, red, minus a mean. Three scales are fused by the maximum of their scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import WeightsError
from pipeline.network.importers.keymap import KeyMap
from pipeline.network.importers.layout import Draft, Hints, Layout, Preprocessing, check_n_rates, settle, settle_preprocessing
from pipeline.network.importers.resnet_keys import n_blocks
from pipeline.network.spec import MultiScaleSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

_BLOCK = "layer2.block1.reduce.conv.weight"
_SCORES = ("aspp.c0.weight", "aspp.stages.c0.conv.weight")
"""Of v2, and of the same project's v3 and v3+."""
_WRAPPER = "base."
"""Name of the network within the module that runs the scales; conversions of Caffe models lack it."""
_DEPTHS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
_MINUS_MEAN = Preprocessing(mean=(104.008, 116.669, 122.675), std=(1.0, 1.0, 1.0), channel_order="bgr")
_SCALES = MultiScaleSpec(scales=(0.5, 0.75, 1.0), fusion="max")


def _matches(keys: Collection[str]) -> bool:
    return any(prefix + _BLOCK in keys and any(prefix + scores in keys for scores in _SCORES) for prefix in (_WRAPPER, ""))


def _draft(tensors: Mapping[str, Tensor], hints: Hints, _config: Mapping[str, Any]) -> Draft:
    prefix = _WRAPPER if _WRAPPER + _BLOCK in tensors else ""
    if prefix + _SCORES[0] not in tensors:
        raise WeightsError(
            f"the state dict is kazuto1011's with {prefix}{_SCORES[1]}, a DeepLab v3 or v3+; of that project only DeepLab v2 "
            f"({prefix}{_SCORES[0]}) can be imported: give such a checkpoint"
        )
    assumed: list[str] = []
    stride = settle(assumed, hints.output_stride, 8, "output stride 8, as kazuto1011's code has it")
    rates = settle(
        assumed, hints.atrous_rates, (6, 12, 18, 24), "atrous rates 6, 12, 18, 24, as kazuto1011's configuration has them"
    )
    corners = settle(assumed, hints.align_corners, False, "align_corners=False, as in kazuto1011's code")
    check_n_rates(rates, sum(f"{prefix}aspp.c{index}.weight" in tensors for index in range(len(tensors))))
    network = NetworkSpec(
        n_classes=int(tensors[f"{prefix}aspp.c0.weight"].shape[0]),
        n_bands=int(tensors[f"{prefix}layer1.conv1.conv.weight"].shape[1]),
        architecture="deeplabv2",
        backbone=_backbone(tensors.keys(), prefix),
        output_stride=stride,
        alignment="corner" if corners else "centre",
        bottleneck_stride="1x1",
        entry_rate="own",
        multi_grid=hints.multi_grid or (1, 1, 1),
        image_pooling="off",
        atrous_rates=rates,
    )
    preprocessing = settle_preprocessing(assumed, hints, _MINUS_MEAN, "kazuto1011's configuration")
    assumed.append("the scales 0.5, 0.75, 1, of whose scores the maximum is taken, here at every pixel, there at every cell")
    assumed.append(
        "input sides of k * 8 + 1, as 321 or 513: on those whose half, rounded up, is even, their pooling (ceil_mode) adds a last row "
        "or column of cells that is not computed here"
    )
    keys = _key_map(tensors.keys(), prefix, n_rates=len(rates))
    return Draft(network=network, keys=keys, preprocessing=preprocessing, multiscale=_SCALES, assumed=tuple(assumed))


def _backbone(names: Collection[str], prefix: str) -> str:
    depths = tuple(n_blocks(names, f"{prefix}layer{stage}.block") for stage in (2, 3, 4, 5))
    if depths not in _DEPTHS:
        raise WeightsError(
            f"the backbone has stages of {depths} blocks; ResNets with 50, 101 or 152 layers, such as 3, 4, 23, 3, can be imported"
        )
    return _DEPTHS[depths]


def _key_map(names: Collection[str], prefix: str, *, n_rates: int) -> KeyMap:
    keys = KeyMap()
    _map_layer(keys, "backbone.stem", f"{prefix}layer1.conv1")
    for stage in range(4):
        for block in range(n_blocks(names, f"{prefix}layer{stage + 2}.block")):
            ours, theirs = f"backbone.stages.{stage}.{block}", f"{prefix}layer{stage + 2}.block{block + 1}"
            for index, layer in enumerate(("reduce", "conv3x3", "increase")):
                _map_layer(keys, f"{ours}.branch.{index}", f"{theirs}.{layer}")
            if block == 0:
                _map_layer(keys, f"{ours}.shortcut", f"{theirs}.shortcut")
    for index in range(n_rates):
        keys.plain(f"head.branches.{index}.fc8", f"{prefix}aspp.c{index}")
    return keys


def _map_layer(keys: KeyMap, ours: str, theirs: str) -> None:
    keys.normalised(ours, f"{theirs}.conv", f"{theirs}.bn")


LAYOUT = Layout(
    name="kazuto1011",
    title="kazuto1011's DeepLab v2 (deeplab-pytorch)",
    recognised_by=f"{_BLOCK} and {_SCORES[0]}, with or without {_WRAPPER} before them",
    matches=_matches,
    draft=_draft,
)
