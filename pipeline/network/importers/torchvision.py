"""Checkpoints of ``torchvision.models.segmentation.deeplabv3_resnet50`` and ``_resnet101``.

The released ones have output stride 8, rates 12, 24, 36, ImageNet normalisation, and ``align_corners=False``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import WeightsError
from pipeline.network.importers.aspp_keys import map_aspp
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
from pipeline.network.importers.resnet_keys import map_resnet, n_blocks, resnet_name
from pipeline.network.spec import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

_PAIR = ("classifier.0.convs.0.0.weight", "classifier.4.weight")


def _matches(keys: Collection[str]) -> bool:
    return all(key in keys for key in _PAIR)


def _draft(tensors: Mapping[str, Tensor], hints: Hints, _config: Mapping[str, Any]) -> Draft:
    if "backbone.conv1.weight" not in tensors:
        raise WeightsError(
            "the state dict is torchvision's DeepLab v3 on another backbone than a ResNet (its MobileNetV3 has squeeze-and-excitation "
            "blocks, which this project does not build); deeplabv3_resnet50 and deeplabv3_resnet101 can be imported"
        )
    assumed: list[str] = []
    stride = settle(assumed, hints.output_stride, 8, "output stride 8, torchvision's own")
    given = settle(
        assumed, hints.atrous_rates, tuple(12 * 8 // stride * i for i in (1, 2, 3)), "atrous rates 12, 24, 36 at output stride 8"
    )
    rates = check_n_rates(rates_at_16(given, stride), n_blocks(tensors.keys(), "classifier.0.convs.") - 2)
    preprocessing = settle_preprocessing(assumed, hints, Preprocessing(), "torchvision")
    keys = KeyMap()
    map_resnet(keys, tensors.keys(), "backbone.")
    map_aspp(keys, "classifier.0.", n_branches=2 + len(rates))
    keys.normalised("context.0", "classifier.1", "classifier.2")
    keys.plain("classifier", "classifier.4")
    network = NetworkSpec(
        n_classes=int(tensors["classifier.4.weight"].shape[0]),
        n_bands=int(tensors["backbone.conv1.weight"].shape[1]),
        architecture="deeplabv3",
        backbone=resnet_name(tensors.keys(), "backbone."),
        output_stride=stride,
        alignment="corner" if hints.align_corners else "centre",
        multi_grid=hints.multi_grid or (1, 1, 1),
        atrous_rates=rates,
        separable=False,
        aspp_channels=int(tensors["classifier.0.convs.0.0.weight"].shape[0]),
        context_convolutions=1,
    )
    return Draft(
        network=network, keys=keys, ignored=(r"aux_classifier\..*",), preprocessing=preprocessing, assumed=tuple(assumed)
    )


LAYOUT = Layout(
    name="torchvision",
    title="torchvision's DeepLab v3",
    recognised_by=" and ".join(_PAIR),
    matches=_matches,
    draft=_draft,
)
