"""Checkpoints of segmentation_models_pytorch: ``DeepLabV3`` and ``DeepLabV3Plus`` on a ResNet or MobileNetV2.

Its defaults are output stride 8 (v3) or 16 (v3+), rates 12, 24, 36 at either, ImageNet normalisation, and ``align_corners=True`` on sizes
that are multiples of the stride. There, the positions depend on the size of the window; ours do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import WeightsError
from pipeline.network.importers.aspp_keys import SMP_PARTS, Parts, found_parts, map_aspp, map_context
from pipeline.network.importers.config import configured_whole, configured_wholes
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

_ORIGIN = "segmentation_models_pytorch"
_HEAD = "segmentation_head.0"
_RATES = (12, 24, 36)
_DEPTH = 5
_EPS = 1e-5
"""Of all its normalisations, that of MobileNetV2 too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """One of its decoders: what its parts are called, and what cannot be told from the keys."""

    aspp: str
    """Prefix of the ASPP."""
    conv: str
    """The convolution behind the ASPP."""
    norm: str
    """Its normalisation."""
    parts: Parts | None
    """Whether that convolution, and the decoder's, are separable."""
    output_stride: int
    """The default."""


_V3 = _Form(aspp="decoder.aspp.", conv="decoder.conv", norm="decoder.bn", parts=None, output_stride=8)
_OLD_V3 = _Form(aspp="decoder.0.", conv="decoder.1", norm="decoder.2", parts=None, output_stride=8)
_V3PLUS = _Form(aspp="decoder.aspp.0.", conv="decoder.aspp.1", norm="decoder.aspp.2", parts=SMP_PARTS, output_stride=16)


def _form(keys: Collection[str]) -> _Form | None:
    found = [form for form in (_V3, _OLD_V3, _V3PLUS) if f"{form.aspp}convs.0.0.weight" in keys]
    return found[0] if found and f"{_HEAD}.weight" in keys else None


def _matches(keys: Collection[str]) -> bool:
    return _form(keys) is not None


def _draft(tensors: Mapping[str, Tensor], hints: Hints, config: Mapping[str, Any]) -> Draft:
    form = _form(tensors) or _V3  # named by the user: what is missing will be listed
    config = config if "encoder_name" in config else {}
    backbone = _backbone(tensors, config)
    assumed: list[str] = []
    stride = _stride(assumed, hints, config, form)
    n_rates = n_blocks(tensors, f"{form.aspp}convs.") - 2
    rates = check_n_rates(rates_at_16(_rates(assumed, hints, config), stride), n_rates)
    corner = settle(
        assumed,
        hints.align_corners,
        False,
        f"features joined by their centres: {_ORIGIN} stretches them corner to corner, which depends on the size of the window and "
        "differs by up to half a cell at its edges",
    )
    preprocessing = settle_preprocessing(assumed, hints, Preprocessing(), _ORIGIN)
    aspp_parts = found_parts(tensors, f"{form.aspp}convs.1.0", SMP_PARTS)
    n_channels = int(tensors[f"{form.aspp}convs.0.0.weight"].shape[0])
    network = NetworkSpec(
        n_classes=int(tensors[f"{_HEAD}.weight"].shape[0]),
        n_bands=int(tensors[_stem(backbone)].shape[1]),
        architecture="deeplabv3" if form.parts is None else "deeplabv3plus",
        backbone=backbone,
        output_stride=stride,
        multi_grid=hints.multi_grid or (1, 1, 1),
        alignment="corner" if corner else "centre",
        backbone_eps=_EPS,
        final_expansion=backbone == "mobilenet_v2",
        entry_rate="own",
        atrous_rates=rates,
        separable=form.parts is not None,
        aspp_separable=None if aspp_parts == form.parts else aspp_parts is not None,
        separable_norm=False,
        aspp_channels=n_channels,
        context_convolutions=1,
        decoder_channels=n_channels,
        decoder_convolutions=1,
    )
    keys = _keys(tensors, form, backbone, n_branches=2 + len(rates), parts=aspp_parts)
    ignored = (r"classification_head\..*",)
    return Draft(network=network, keys=keys, ignored=ignored, preprocessing=preprocessing, assumed=tuple(assumed))


def _stride(assumed: list[str], hints: Hints, config: Mapping[str, Any], form: _Form) -> int:
    said = hints.output_stride if hints.output_stride is not None else configured_whole(config, "encoder_output_stride")
    name = "DeepLabV3" if form.parts is None else "DeepLabV3Plus"
    return settle(assumed, said, form.output_stride, f"output stride {form.output_stride}, the default of its {name}")


def _rates(assumed: list[str], hints: Hints, config: Mapping[str, Any]) -> tuple[int, ...]:
    said = hints.atrous_rates if hints.atrous_rates is not None else configured_wholes(config, "decoder_atrous_rates")
    return settle(assumed, said, _RATES, "atrous rates 12, 24, 36, its default at every output stride")


def _keys(tensors: Collection[str], form: _Form, backbone: str, *, n_branches: int, parts: Parts | None) -> KeyMap:
    keys = KeyMap()
    if backbone == "mobilenet_v2":
        map_mobilenet(keys, "encoder.features.{}".format, expansion=True)
    else:
        map_resnet(keys, tensors, "encoder.")
    map_aspp(keys, form.aspp, n_branches=n_branches, parts=parts)
    map_context(keys, "context.0", form.conv, form.norm, parts=form.parts)
    if form.parts is not None:
        keys.normalised("decoder.reduce", "decoder.block1.0", "decoder.block1.1")
        map_context(keys, "decoder.refine.0", "decoder.block2.0", "decoder.block2.1", parts=form.parts)
    keys.plain("classifier", _HEAD)
    return keys


# Encoders

_MOBILENET_STEM = "encoder.features.0.0.weight"
_RESNET_STEM = "encoder.conv1.weight"

_OTHER_FAMILIES = {
    "encoder.model.": "a timm model (tu-...)",
    "encoder.layer0.": "an SE-ResNet or SENet",
    "encoder._conv_stem.": "an EfficientNet",
    "encoder.conv_stem.": "an EfficientNet of timm",
    "encoder.features.conv0.": "a DenseNet",
    "encoder.features.conv1_1.": "a DPN",
    "encoder.features.0.conv.": "an Inception v4",
    "encoder.features.0.weight": "a VGG",
    "encoder.conv2d_1a.": "an Inception-ResNet v2",
    "encoder.patch_embed1.": "a Mix Transformer",
    "encoder.stage0.": "a MobileOne",
    "encoder.block1.rep.": "an Xception",
}
"""Encoders that cannot be imported, by the start of their keys."""


def _backbone(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """Return our name of the encoder; WeightsError where it cannot be built."""
    named = config.get("encoder_name")
    if _MOBILENET_STEM in tensors and "encoder.features.18.0.weight" in tensors:
        found = "mobilenet_v2"
    elif _is_resnet(tensors):
        found = resnet_name(tensors, "encoder.")
    else:
        raise WeightsError(
            f"the encoder is {named or _family(tensors)}; checkpoints of {_ORIGIN} can be imported with the encoders resnet18, resnet34, "
            "resnet50, resnet101, resnet152 and mobilenet_v2"
        )
    if named not in (None, found):
        raise WeightsError(
            f"config.json beside the checkpoint has the encoder {named!r} and the tensors are those of {found}; put the right one there "
            "or move it away"
        )
    depth = configured_whole(config, "encoder_depth")
    if depth not in (None, _DEPTH):
        raise WeightsError(f"the encoder has depth {depth}; only networks on all {_DEPTH} stages of an encoder can be imported")
    return found


def _is_resnet(tensors: Mapping[str, Tensor]) -> bool:
    """Tell a ResNet from its relatives: those with groups (ResNeXt), with wide layers, or with other modules in their blocks."""
    first, second = (tensors.get(f"encoder.layer1.0.conv{index}.weight") for index in (1, 2))
    if _RESNET_STEM not in tensors or first is None or second is None:
        return False
    return first.shape[0] == 64 and second.shape[1] == second.shape[0]


def _family(tensors: Mapping[str, Tensor]) -> str:
    for start, family in _OTHER_FAMILIES.items():
        if any(key.startswith(start) for key in tensors):
            return family
    if any(key.startswith("encoder.layer1.0.") for key in tensors):
        return "a ResNet with groups, wide layers or a changed block (ResNeXt, Wide ResNet, ...)"
    first = sorted(key for key in tensors if key.startswith("encoder."))[:3]
    return f"none of the known ones (its first keys are {', '.join(first) or 'missing'})"


def _stem(backbone: str) -> str:
    return _MOBILENET_STEM if backbone == "mobilenet_v2" else _RESNET_STEM


LAYOUT = Layout(
    name="smp",
    title=f"DeepLabV3 or DeepLabV3Plus of {_ORIGIN}",
    recognised_by=f"{_HEAD}.weight and decoder.aspp.convs.0.0.weight (DeepLabV3) or decoder.aspp.0.convs.0.0.weight (DeepLabV3Plus)",
    matches=_matches,
    draft=_draft,
)
