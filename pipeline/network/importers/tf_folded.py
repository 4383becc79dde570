"""Google's DeepLab v3 on MobileNetV2 with the normalisations folded away: the layout of mobile releases turned into tensors.

Layers are called ``stem``, ``blocks.3.depthwise``, ``image_pooling``, ``aspp0``, ``concat_projection`` and ``logits``, each with a kernel
and a bias. The image-level branch stands first in the concatenation, and everything is resized with ``align_corners=True`` on sizes of
k * output stride + 1, on which TensorFlow's "SAME" padding is symmetric.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.network.backbones.inverted_residual import plan_blocks
from pipeline.network.backbones.mobilenet_v2 import STAGES
from pipeline.network.importers.keymap import KeyMap, pooling_last
from pipeline.network.importers.layout import Draft, Hints, Layout, Preprocessing, check_n_rates, settle, settle_preprocessing
from pipeline.network.spec import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

_PAIR = ("blocks.16.project.weight", "concat_projection.weight")
_STEM_CHANNELS = 32
_BACKBONE_EPS = 1e-3
_HEAD_EPS = 1e-5
_UNIT = Preprocessing(mean=(127.5,) * 3, std=(127.5,) * 3)


def _matches(keys: Collection[str]) -> bool:
    return all(key in keys for key in _PAIR)


def _draft(tensors: Mapping[str, Tensor], hints: Hints, _config: Mapping[str, Any]) -> Draft:
    assumed: list[str] = []
    width = int(tensors["stem.weight"].shape[0]) / _STEM_CHANNELS
    usual = 16 if width >= 1 else 8
    stride = settle(
        assumed, hints.output_stride, usual, f"output stride {usual}, as the released network of width {width:g} has it"
    )
    check_n_rates(hints.atrous_rates or (), 0)
    corners = settle(assumed, hints.align_corners, True, "align_corners=True, as in TensorFlow's DeepLab")
    network = NetworkSpec(
        n_classes=int(tensors["logits.weight"].shape[0]),
        n_bands=int(tensors["stem.weight"].shape[1]),
        architecture="deeplabv3",
        backbone="mobilenet_v2",
        backbone_width=width,
        backbone_eps=_BACKBONE_EPS,
        output_stride=stride,
        alignment="corner" if corners else "centre",
        multi_grid=hints.multi_grid or (1, 1, 1),
        atrous_rates=(),
        aspp_channels=int(tensors["concat_projection.weight"].shape[0]),
    )
    preprocessing = settle_preprocessing(assumed, hints, _UNIT, "TensorFlow's DeepLab")
    return Draft(network=network, keys=_key_map(network), preprocessing=preprocessing, assumed=tuple(assumed))


def _key_map(network: NetworkSpec) -> KeyMap:
    keys = KeyMap()
    keys.folded("backbone.stem", "stem", eps=_BACKBONE_EPS)
    for index, plan in enumerate(plan_blocks(STAGES, network.output_stride)):
        for layer in ("expand", "depthwise", "project") if plan.expansion > 1 else ("depthwise", "project"):
            keys.folded(f"backbone.blocks.{index}.{layer}", f"blocks.{index}.{layer}", eps=_BACKBONE_EPS)
    keys.folded("aspp.branches.0", "aspp0", eps=_HEAD_EPS)
    keys.folded("aspp.branches.1.project", "image_pooling", eps=_HEAD_EPS)
    keys.folded("aspp.project", "concat_projection", eps=_HEAD_EPS, change=pooling_last(2))
    keys.plain("classifier", "logits")
    return keys


LAYOUT = Layout(
    name="tf-folded",
    title="TensorFlow's DeepLab v3 on MobileNetV2 with folded normalisations",
    recognised_by=" and ".join(_PAIR),
    matches=_matches,
    draft=_draft,
)
