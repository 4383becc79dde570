"""Checkpoints of jfzhang95's pytorch-deeplab-xception: DeepLab v3+ on ResNet-101.

Its ResNet has multi-grid rates 1, 2, 4 in the last stage; its upsampling is ``align_corners=True`` on crops of k * output stride + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import WeightsError
from pipeline.network.importers.keymap import KeyMap
from pipeline.network.importers.layout import (
    Draft,
    Hints,
    Layout,
    Preprocessing,
    check_n_rates,
    rates_at_16,
    settle,
    settle_preprocessing,
)
from pipeline.network.importers.resnet_keys import map_resnet, resnet_name
from pipeline.network.spec import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

_PAIR = ("aspp.aspp1.atrous_conv.weight", "decoder.last_conv.0.weight")
_OTHER_BACKBONES = {
    "backbone.block1.": "Xception",
    "backbone.low_level_features.": "MobileNetV2",
    "backbone.features.": "MobileNetV2",
    "backbone.layer5.": "DRN",
}
"""By what the keys of one start with."""


def _matches(keys: Collection[str]) -> bool:
    return all(key in keys for key in _PAIR)


def _draft(tensors: Mapping[str, Tensor], hints: Hints, _config: Mapping[str, Any]) -> Draft:
    _check_backbone(tensors.keys())
    second, last = _decoder_layers(tensors.keys())
    assumed: list[str] = []
    stride = settle(assumed, hints.output_stride, 16, "output stride 16, the default of jfzhang95's code")
    own = tuple(6 * i * 16 // stride for i in (1, 2, 3))
    said = f"atrous rates {', '.join(map(str, own))}, as jfzhang95's code has them at output stride {stride}"
    rates = check_n_rates(rates_at_16(settle(assumed, hints.atrous_rates, own, said), stride), 3)
    grid = settle(assumed, hints.multi_grid, (1, 2, 4), "multi-grid rates 1, 2, 4, as jfzhang95's code has them")
    corners = settle(assumed, hints.align_corners, True, "align_corners=True, as in jfzhang95's code")
    preprocessing = settle_preprocessing(assumed, hints, Preprocessing(), "jfzhang95's code")
    network = NetworkSpec(
        n_classes=int(tensors[f"decoder.last_conv.{last}.weight"].shape[0]),
        n_bands=int(tensors["backbone.conv1.weight"].shape[1]),
        architecture="deeplabv3plus",
        backbone=resnet_name(tensors.keys(), "backbone."),
        output_stride=stride,
        alignment="corner" if corners else "centre",
        entry_rate="own",
        multi_grid=grid,
        atrous_rates=rates,
        separable=False,
        aspp_channels=int(tensors["aspp.conv1.weight"].shape[0]),
        low_level_channels=int(tensors["decoder.conv1.weight"].shape[0]),
        decoder_channels=int(tensors[f"decoder.last_conv.{second}.weight"].shape[0]),
    )
    return Draft(network=network, keys=_key_map(tensors.keys()), preprocessing=preprocessing, assumed=tuple(assumed))


def _check_backbone(names: Collection[str]) -> None:
    for start, found in _OTHER_BACKBONES.items():
        if any(name.startswith(start) for name in names):
            raise WeightsError(
                f"the state dict is jfzhang95's DeepLab v3+ on {found} (it has {start}*); of that project only the ResNet backbone "
                "(--backbone resnet) can be imported: give such a checkpoint"
            )


def _decoder_layers(names: Collection[str]) -> tuple[int, int]:
    """Return the places of the second 3 x 3 convolution and of the classifier: early versions have no dropout between."""
    return (3, 6) if "decoder.last_conv.3.weight" in names else (4, 8)


def _key_map(names: Collection[str]) -> KeyMap:
    keys = KeyMap()
    second, last = _decoder_layers(names)
    map_resnet(keys, names, "backbone.")
    for index in range(4):
        keys.normalised(f"aspp.branches.{index}", f"aspp.aspp{index + 1}.atrous_conv", f"aspp.aspp{index + 1}.bn")
    keys.normalised("aspp.branches.4.project", "aspp.global_avg_pool.1", "aspp.global_avg_pool.2")
    keys.normalised("aspp.project", "aspp.conv1", "aspp.bn1")
    keys.normalised("decoder.reduce", "decoder.conv1", "decoder.bn1")
    for index, theirs in enumerate((0, second)):
        keys.normalised(f"decoder.refine.{index}", f"decoder.last_conv.{theirs}", f"decoder.last_conv.{theirs + 1}")
    keys.plain("classifier", f"decoder.last_conv.{last}")
    return keys


LAYOUT = Layout(
    name="jfzhang95",
    title="jfzhang95's DeepLab v3+ (pytorch-deeplab-xception)",
    recognised_by=" and ".join(_PAIR),
    matches=_matches,
    draft=_draft,
)
