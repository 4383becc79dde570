"""Checkpoints of transformers' ``MobileNetV2ForSemanticSegmentation``, such as ``google/deeplabv3_mobilenet_v2_1.0_513``.

DeepLab v3 on MobileNetV2 as TensorFlow's release has it: no atrous branches, image pooling first, TensorFlow's padding, pixels
of -1 to 1. Output stride and epsilon are in ``config.json`` beside them; the published one has stride 8. The library's logits are
scores at the output stride.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import WeightsError
from pipeline.network.backbones.inverted_residual import plan_blocks
from pipeline.network.backbones.mobilenet_v2 import STAGES
from pipeline.network.importers.config import configured_number, configured_whole
from pipeline.network.importers.keymap import KeyMap, pooling_last
from pipeline.network.importers.layout import Draft, Hints, Layout, Preprocessing, check_n_rates, settle, settle_preprocessing
from pipeline.network.spec import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

_PAIR = ("mobilenet_v2.conv_stem.first_conv.convolution.weight", "segmentation_head.conv_aspp.convolution.weight")
_STEM = "mobilenet_v2.conv_stem"
_HEAD = "segmentation_head"
_STEM_CHANNELS = 32
_N_LAYERS = 16
_PUBLISHED_STRIDE = 8
_DEFAULT_STRIDE = 32
_DEFAULT_EPS = 1e-3
_PREPROCESSING = Preprocessing(mean=(127.5,) * 3, std=(127.5,) * 3)


def _matches(keys: Collection[str]) -> bool:
    return all(key in keys for key in _PAIR)


def _draft(tensors: Mapping[str, Tensor], hints: Hints, config: Mapping[str, Any]) -> Draft:
    assumed: list[str] = []
    stride, eps = _configured(assumed, hints, config)
    corner = settle(
        assumed,
        hints.align_corners,
        True,
        "cells at every stride-th pixel, as the weights were trained in TensorFlow; the library's own post-processing joins them by their "
        "centres",
    )
    preprocessing = settle_preprocessing(assumed, hints, _PREPROCESSING, "its image processor")
    network = NetworkSpec(
        n_classes=int(tensors[f"{_HEAD}.classifier.convolution.weight"].shape[0]),
        n_bands=int(tensors[_PAIR[0]].shape[1]),
        architecture="deeplabv3",
        backbone="mobilenet_v2",
        backbone_width=_width(tensors),
        backbone_eps=eps,
        output_stride=stride,
        multi_grid=hints.multi_grid or (1, 1, 1),
        alignment="corner" if corner else "centre",
        atrous_rates=check_n_rates(hints.atrous_rates or (), 0),
        aspp_channels=int(tensors[_PAIR[1]].shape[0]),
    )
    ignored = (r"mobilenet_v2\.conv_1x1\..*",)  # made for classification, not used by the segmentation head
    return Draft(network=network, keys=_keys(), ignored=ignored, preprocessing=preprocessing, assumed=tuple(assumed))


def _configured(assumed: list[str], hints: Hints, config: Mapping[str, Any]) -> tuple[int, float]:
    """Return output stride and epsilon; a configuration leaves out what is the library's default."""
    config = config if config.get("model_type") == "mobilenet_v2" else {}
    if config.get("hidden_act", "relu6") != "relu6":
        raise WeightsError(
            f"config.json beside the checkpoint has hidden_act {config['hidden_act']!r}; only networks with 'relu6' can be imported"
        )
    if config:
        stride = hints.output_stride or configured_whole(config, "output_stride") or _DEFAULT_STRIDE
        return stride, configured_number(config, "layer_norm_eps") or _DEFAULT_EPS
    published = f"output stride {_PUBLISHED_STRIDE}, that of the published deeplabv3_mobilenet_v2_1.0_513"
    stride = settle(assumed, hints.output_stride, _PUBLISHED_STRIDE, published)
    assumed.append(f"{_DEFAULT_EPS:g} added to variances in the backbone, the library's default")
    return stride, _DEFAULT_EPS


def _width(tensors: Mapping[str, Tensor]) -> float:
    """Return the factor on the channels; WeightsError where they were rounded otherwise than ours are."""
    width = int(tensors[_PAIR[0]].shape[0]) / _STEM_CHANNELS
    expected = [plan.n_out for plan in plan_blocks(STAGES, 16, width=width)[1:]]
    given = [int(tensors[f"mobilenet_v2.layer.{i}.reduce_1x1.convolution.weight"].shape[0]) for i in range(_N_LAYERS)]
    if given != expected:
        raise WeightsError(
            f"the backbone's layers have {given} channels; at a depth multiplier of {width:g} those of TensorFlow's release have "
            f"{expected}, not rounded to multiples of 8: a checkpoint with depth_multiplier 1.0 can be imported"
        )
    return width


def _keys() -> KeyMap:
    keys = KeyMap()
    _layer(keys, "backbone.stem", f"{_STEM}.first_conv")
    _layer(keys, "backbone.blocks.0.depthwise", f"{_STEM}.conv_3x3")
    _layer(keys, "backbone.blocks.0.project", f"{_STEM}.reduce_1x1")
    names = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
    for index in range(_N_LAYERS):
        for ours, theirs in names.items():
            _layer(keys, f"backbone.blocks.{index + 1}.{ours}", f"mobilenet_v2.layer.{index}.{theirs}")
    _layer(keys, "aspp.branches.0", f"{_HEAD}.conv_aspp")
    _layer(keys, "aspp.branches.1.project", f"{_HEAD}.conv_pool")
    projection = f"{_HEAD}.conv_projection"
    keys.normalised("aspp.project", f"{projection}.convolution", f"{projection}.normalization", change=pooling_last(2))
    keys.plain("classifier", f"{_HEAD}.classifier.convolution")
    return keys


def _layer(keys: KeyMap, ours: str, theirs: str) -> None:
    keys.normalised(ours, f"{theirs}.convolution", f"{theirs}.normalization")


LAYOUT = Layout(
    name="huggingface",
    title="transformers' MobileNetV2ForSemanticSegmentation",
    recognised_by=" and ".join(_PAIR),
    matches=_matches,
    draft=_draft,
)
