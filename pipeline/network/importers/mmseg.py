"""Checkpoints of mmsegmentation: DeepLab v3 and v3+ on ResNets, as in its configurations ``deeplabv3_r50-d8``, ``deeplabv3plus_r101-d8``.

The image-level branch stands first in the concatenation, and a 3 x 3 convolution projects it. In v3+ atrous branches and decoder
are separable. ResNets "V1c" have a stem of three 3 x 3 convolutions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import SpecError, WeightsError
from pipeline.network.importers.keymap import KeyMap, pooling_last
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

_HEAD = "decode_head."
_PAIR = (f"{_HEAD}aspp_modules.0.conv.weight", f"{_HEAD}conv_seg.weight")
_DEEP_STEM = "backbone.stem.0.weight"
_REFUSED = {
    f"{_HEAD}bottleneck.depthwise_conv.": "a separable bottleneck",
    "backbone.layer1.0.downsample.2.": "a ResNet V1d, whose shortcuts average",
    "backbone.layer1.0.conv.": "a MobileNetV2",
    "backbone.downsample_layers.": "a ConvNeXt",
}
"""What cannot be built, by what the keys of it start with."""
_CAN = "DeepLab v3 and v3+ on ResNet or ResNet V1c with 50, 101 or 152 layers can be imported: give such a checkpoint"


def _matches(keys: Collection[str]) -> bool:
    return all(key in keys for key in _PAIR)


def _draft(tensors: Mapping[str, Tensor], hints: Hints, _config: Mapping[str, Any]) -> Draft:
    names = tensors.keys()
    _check_parts(names)
    has_decoder = any(name.startswith(f"{_HEAD}sep_bottleneck.") for name in names)
    stem = "backbone.stem.0.weight" if _DEEP_STEM in names else "backbone.conv1.weight"
    assumed: list[str] = []
    stride, rates = _stride_and_rates(assumed, hints, n_rates=n_blocks(names, f"{_HEAD}aspp_modules.") - 1)
    assumed.append(
        "strides in the 3 x 3 convolution of a block (style 'pytorch'), and the first block of an atrous stage at the rate of the stage "
        "before it (contract_dilation), as mmsegmentation's configurations have it"
    )
    corners = settle(assumed, hints.align_corners, False, "align_corners=False, as in mmsegmentation's configurations")
    network = NetworkSpec(
        n_classes=int(tensors[f"{_HEAD}conv_seg.weight"].shape[0]),
        n_bands=int(tensors[stem].shape[1]),
        architecture="deeplabv3plus" if has_decoder else "deeplabv3",
        backbone=_backbone(names),
        output_stride=stride,
        alignment="corner" if corners else "centre",
        stem="deep" if _DEEP_STEM in names else "plain",
        multi_grid=_multi_grid(hints.multi_grid, stride),
        atrous_rates=rates,
        separable=has_decoder,
        aspp_channels=int(tensors[f"{_HEAD}bottleneck.conv.weight"].shape[0]),
        projection_kernel=int(tensors[f"{_HEAD}bottleneck.conv.weight"].shape[-1]),
        **_decoder_channels(tensors) if has_decoder else {},
    )
    preprocessing = settle_preprocessing(assumed, hints, Preprocessing(), "mmsegmentation's configurations")
    keys = _key_map(names, n_rates=len(rates), has_decoder=has_decoder)
    return Draft(
        network=network, keys=keys, ignored=(r"auxiliary_head\..*",), preprocessing=preprocessing, assumed=tuple(assumed)
    )


def _check_parts(names: Collection[str]) -> None:
    for start, found in _REFUSED.items():
        if any(name.startswith(start) for name in names):
            raise WeightsError(
                f"the state dict is mmsegmentation's DeepLab with {found} (it has {start}*), which this project does not build; {_CAN}"
            )


def _backbone(names: Collection[str]) -> str:
    found = resnet_name(names, "backbone.")
    if found in ("resnet18", "resnet34"):
        raise WeightsError(
            f"the state dict is mmsegmentation's DeepLab on {found}, of whose blocks only the first convolution is atrous there; {_CAN}"
        )
    return found


def _stride_and_rates(assumed: list[str], hints: Hints, *, n_rates: int) -> tuple[int, tuple[int, ...]]:
    stride = settle(assumed, hints.output_stride, 8, "output stride 8, that of mmsegmentation's *-d8 configurations")
    own = tuple(6 * i * 16 // stride for i in (1, 2, 3))
    said = f"atrous rates 1, {', '.join(map(str, own))}, as mmsegmentation's configurations have them at output stride {stride}"
    given = settle(assumed, hints.atrous_rates, own, said)
    if len(given) == n_rates + 1 and given[0] == 1:  # their configurations count the 1 x 1 branch as one of rate 1
        given = given[1:]
    return stride, rates_at_16(check_n_rates(given, n_rates), stride)


def _multi_grid(rates: tuple[int, ...] | None, stride: int) -> tuple[int, ...]:
    """Return as factors what mmsegmentation's configurations write as the rates of the last stage's blocks."""
    if rates is None:
        return (1, 1, 1)
    units = {8: (2, 4, 4), 16: (1, 2, 2)}.get(stride, (1, 1, 1))
    if len(rates) != len(units) or any(rate % unit for rate, unit in zip(rates, units, strict=True)):
        raise SpecError(
            f"multi_grid {', '.join(map(str, rates))} was given; in mmsegmentation these are the rates of the last three blocks, here at "
            f"output stride {stride} multiples of {', '.join(map(str, units))}: check --multi-grid and --output-stride"
        )
    return tuple(rate // unit for rate, unit in zip(rates, units, strict=True))


def _decoder_channels(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "low_level_channels": int(tensors[f"{_HEAD}c1_bottleneck.conv.weight"].shape[0]),
        "decoder_channels": int(tensors[f"{_HEAD}sep_bottleneck.0.pointwise_conv.conv.weight"].shape[0]),
    }


def _key_map(names: Collection[str], *, n_rates: int, has_decoder: bool) -> KeyMap:
    keys = KeyMap()
    map_resnet(keys, names, "backbone.")
    _map_module(keys, "aspp.branches.0", "aspp_modules.0")
    map_branch = _map_separable if has_decoder else _map_module
    for index in range(1, n_rates + 1):
        map_branch(keys, f"aspp.branches.{index}", f"aspp_modules.{index}")
    _map_module(keys, f"aspp.branches.{n_rates + 1}.project", "image_pool.1")
    keys.normalised("aspp.project", f"{_HEAD}bottleneck.conv", f"{_HEAD}bottleneck.bn", change=pooling_last(n_rates + 2))
    if has_decoder:
        _map_module(keys, "decoder.reduce", "c1_bottleneck")
        for index in (0, 1):
            _map_separable(keys, f"decoder.refine.{index}", f"sep_bottleneck.{index}")
    keys.plain("classifier", f"{_HEAD}conv_seg")
    return keys


def _map_module(keys: KeyMap, ours: str, theirs: str) -> None:
    keys.normalised(ours, f"{_HEAD}{theirs}.conv", f"{_HEAD}{theirs}.bn")


def _map_separable(keys: KeyMap, ours: str, theirs: str) -> None:
    _map_module(keys, f"{ours}.0", f"{theirs}.depthwise_conv")
    _map_module(keys, f"{ours}.1", f"{theirs}.pointwise_conv")


LAYOUT = Layout(
    name="mmseg",
    title="mmsegmentation's DeepLab v3 or v3+",
    recognised_by=" and ".join(_PAIR),
    matches=_matches,
    draft=_draft,
)
