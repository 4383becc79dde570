"""Checkpoints of VainF/DeepLabV3Plus-Pytorch: v3 and v3+ on ResNet-50, ResNet-101 or MobileNetV2.

Output stride 16 or 8 (file names often end in ``os16``), rates 6, 12, 18 at 16 and twice those at 8, ImageNet normalisation, and
``align_corners=False``. The decoder of v3+ has one 3 x 3 convolution and joins the low-level features first.

Its MobileNetV2 pads before a block's first convolution, and its stem not at all. Ours pads, like the other public ones, where the
depthwise convolution is. So the features are the same away from the edges of a window, one pixel further left and up, and differ at
the edges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import WeightsError
from pipeline.network.importers.aspp_keys import VAINF_PARTS, Parts, found_parts, map_aspp, map_context
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
from pipeline.network.importers.mobilenet_keys import map_mobilenet
from pipeline.network.importers.resnet_keys import map_resnet, n_blocks, resnet_name
from pipeline.network.spec import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

_ORIGIN = "VainF/DeepLabV3Plus-Pytorch"
_V3_PAIR = ("classifier.classifier.0.convs.0.0.weight", "classifier.classifier.4.weight")
_V3PLUS_PAIR = ("classifier.aspp.convs.0.0.weight", "classifier.project.0.weight")
_RESNET_STEM = "backbone.conv1.weight"
_MOBILENET_STEM = "backbone.low_level_features.0.0.weight"
_LOW_LEVEL_CHANNELS = 48
_N_LOW_LEVEL_FEATURES = 4
_EPS = 1e-5


def _is_v3plus(keys: Collection[str]) -> bool:
    return all(key in keys for key in _V3PLUS_PAIR)


def _matches(keys: Collection[str]) -> bool:
    return _is_v3plus(keys) or all(key in keys for key in _V3_PAIR)


def _draft(tensors: Mapping[str, Tensor], hints: Hints, _config: Mapping[str, Any]) -> Draft:
    is_plus = _is_v3plus(tensors)
    aspp, last = ("classifier.aspp.", "classifier.classifier.3") if is_plus else _names_v3()
    backbone = _backbone(tensors)
    assumed: list[str] = []
    stride = settle(
        assumed, hints.output_stride, 16, f"output stride 16, the default of {_ORIGIN} (its file names say os16 or os8)"
    )
    default = tuple(rate * 16 // stride for rate in (6, 12, 18))
    given = settle(assumed, hints.atrous_rates, default, f"atrous rates {', '.join(map(str, default))} at output stride {stride}")
    rates = check_n_rates(rates_at_16(given, stride), n_blocks(tensors, f"{aspp}convs.") - 2)
    preprocessing = settle_preprocessing(assumed, hints, Preprocessing(), _ORIGIN)
    if backbone == "mobilenet_v2":
        assumed.append(
            "zeros are added where the depthwise convolutions are: its own MobileNetV2 adds them earlier, which differs at the edges of "
            "a window and by a shift of one pixel"
        )
    parts = found_parts(tensors, f"{aspp}convs.1.0", VAINF_PARTS)
    network = NetworkSpec(
        n_classes=int(tensors[f"{last}.weight"].shape[0]),
        n_bands=int(tensors[_MOBILENET_STEM if backbone == "mobilenet_v2" else _RESNET_STEM].shape[1]),
        architecture="deeplabv3plus" if is_plus else "deeplabv3",
        backbone=backbone,
        output_stride=stride,
        multi_grid=hints.multi_grid or (1, 1, 1),
        alignment="corner" if hints.align_corners else "centre",
        backbone_eps=_EPS,
        atrous_rates=rates,
        separable=parts is not None,
        separable_norm=False,
        aspp_channels=int(tensors[f"{aspp}convs.0.0.weight"].shape[0]),
        context_convolutions=0 if is_plus else 1,
        low_level_channels=_LOW_LEVEL_CHANNELS,
        decoder_convolutions=1,
    )
    keys = KeyMap()
    _map_backbone(keys, tensors, backbone)
    map_aspp(keys, aspp, n_branches=2 + len(rates), parts=parts)
    _map_head(keys, is_plus=is_plus, parts=parts)
    keys.plain("classifier", last)
    return Draft(network=network, keys=keys, preprocessing=preprocessing, assumed=tuple(assumed))


def _names_v3() -> tuple[str, str]:
    return "classifier.classifier.0.", "classifier.classifier.4"


def _backbone(tensors: Mapping[str, Tensor]) -> str:
    if _MOBILENET_STEM in tensors:
        return "mobilenet_v2"
    if _RESNET_STEM in tensors and "backbone.layer1.0.conv1.weight" in tensors:
        return resnet_name(tensors, "backbone.")
    family = "an HRNet" if any(key.startswith("backbone.stage4.") for key in tensors) else "another one"
    family = "an Xception" if any(key.startswith("backbone.block1.") for key in tensors) else family
    raise WeightsError(
        f"the backbone is {family}; checkpoints of {_ORIGIN} can be imported with the backbones resnet50, resnet101 and mobilenet"
    )


def _map_backbone(keys: KeyMap, names: Collection[str], backbone: str) -> None:
    if backbone == "mobilenet_v2":
        map_mobilenet(keys, _feature, expansion=False)
    else:
        map_resnet(keys, names, "backbone.")


def _feature(index: int) -> str:
    part = "low_level_features" if index < _N_LOW_LEVEL_FEATURES else "high_level_features"
    return f"backbone.{part}.{index}"


def _map_head(keys: KeyMap, *, is_plus: bool, parts: Parts | None) -> None:
    if not is_plus:
        map_context(keys, "context.0", "classifier.classifier.1", "classifier.classifier.2", parts=parts)
        return
    keys.normalised("decoder.reduce", "classifier.project.0", "classifier.project.1")
    map_context(
        keys,
        "decoder.refine.0",
        "classifier.classifier.0",
        "classifier.classifier.1",
        parts=parts,
        n_first=_LOW_LEVEL_CHANNELS,
    )


LAYOUT = Layout(
    name="vainf",
    title=f"DeepLab v3 or v3+ of {_ORIGIN}",
    recognised_by=f"{' and '.join(_V3_PAIR)} (v3) or {' and '.join(_V3PLUS_PAIR)} (v3+)",
    matches=_matches,
    draft=_draft,
)
