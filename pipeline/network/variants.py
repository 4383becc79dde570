"""Which systems do the four papers describe, under which name, and with which hyperparameters?

v1: arXiv 1412.7062, v2: 1606.00915, v3: 1706.05587, v3+: 1802.02611. Where a paper leaves a choice open, a comment says which was
taken. Any choice can be changed: a variant is a plain `NetworkSpec` with the scales that it is run at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pipeline.errors import SpecError
from pipeline.network.keys import suggest
from pipeline.network.spec import MultiScaleSpec, NetworkSpec

PASCAL_CLASSES = 21
"""Of PASCAL VOC 2012, background included; what the papers count parameters with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One system of the family."""

    name: str
    """What users call it, for example ``deeplabv2-resnet101-aspp-l``."""
    network: NetworkSpec
    """How its layers are built."""
    multiscale: MultiScaleSpec
    """The scales that the paper runs it at."""
    source: str
    """Where it is described: paper and table or section."""


def variant_names() -> tuple[str, ...]:
    """Return the names of all variants, v1 to v3+."""
    return tuple(_variants())


def variant(name: str, *, n_classes: int = PASCAL_CLASSES, n_bands: int = 3) -> Variant:
    """Return the variant of that name for so many classes and bands.

    Raises
    ------
    SpecError
        If there is no such variant; the message names the nearest one.
    """
    known = _variants()
    if name not in known:
        raise SpecError(f"{name!r} is not a named variant of DeepLab; {suggest(name, known)}")
    found = known[name]
    return replace(found, network=replace(found.network, n_classes=n_classes, n_bands=n_bands))


@cache
def _variants() -> dict[str, Variant]:
    return {one.name: one for one in (*_v1(), *_v2(), *_v3(), *_v3plus())}


# v1 (arXiv 1412.7062)

_VGG: dict[str, Any] = {"backbone": "vgg16", "output_stride": 8, "image_pooling": "off"}
_FC6: dict[str, dict[str, Any]] = {
    "7x7": {"head_kernel": 7, "atrous_rates": (4,), "head_channels": 4096},
    "4x4": {"head_kernel": 4, "atrous_rates": (4,), "head_channels": 4096},
    "4x4-r8": {"head_kernel": 4, "atrous_rates": (8,), "head_channels": 4096},
    "largefov": {"head_kernel": 3, "atrous_rates": (12,), "head_channels": 1024},
}
_SIDE_CHANNELS = 128


def _v1() -> tuple[Variant, ...]:
    build = {"architecture": "deeplabv1", **_VGG}
    plain = tuple(_named(f"deeplabv1-vgg16-{form}", "v1, table 2", **build, **fc6) for form, fc6 in _FC6.items())
    # The table that introduces MSc adds it to the first "DeepLab" of the paper, whose fc6 is 4 x 4 at rate 4 (same scores in table 2).
    msc = {"side_channels": _SIDE_CHANNELS, **build}
    return (
        *plain,
        _named("deeplabv1-vgg16-msc", "v1, table 1 and section 4.3", **msc, **_FC6["4x4"]),
        _named("deeplabv1-vgg16-msc-largefov", "v1, table 1 and section 4.3", **msc, **_FC6["largefov"]),
    )


# v2 (arXiv 1606.00915)

_V2_RATES = {"largefov": (12,), "aspp-s": (2, 4, 8, 12), "aspp-l": (6, 12, 18, 24)}
_V2_SCALES = MultiScaleSpec(scales=(0.5, 0.75, 1.0), fusion="max")


def _v2() -> tuple[Variant, ...]:
    vgg: dict[str, Any] = {"head_channels": 1024, **_VGG}
    # Stride in the first 1 x 1 convolution of a bottleneck, and rates from the first block of a stage on: the Caffe ResNet of the release.
    resnet: dict[str, Any] = {
        "backbone": "resnet101",
        "output_stride": 8,
        "image_pooling": "off",
        "bottleneck_stride": "1x1",
        "entry_rate": "own",
        "multiscale": _V2_SCALES,
    }
    backbones = {"vgg16": (vgg, "v2, table 3"), "resnet101": (resnet, "v2, table 4")}
    return tuple(
        _named(f"deeplabv2-{backbone}-{context}", source, architecture="deeplabv2", atrous_rates=rates, **build)
        for backbone, (build, source) in backbones.items()
        for context, rates in _V2_RATES.items()
    )


# v3 (arXiv 1706.05587)

_RESNETS = ("resnet50", "resnet101")

# The paper's ResNet has the stride of a stage in its last block; ours, as all public PyTorch weights, in the next stage's first. With
# ``entry_rate`` own all blocks of a stage have its rate, as in the paper.
_V3: dict[str, Any] = {
    "architecture": "deeplabv3",
    "output_stride": 16,
    "entry_rate": "own",
    "multi_grid": (1, 2, 4),
    "atrous_rates": (6, 12, 18),
    "separable": False,
}
_CASCADE: dict[str, Any] = {**_V3, "multi_grid": (1, 2, 1), "cascade_blocks": 3, "atrous_rates": (), "image_pooling": "off"}

# From the released code, not from the paper, whose networks are ResNets: no atrous branch, and features joined corner to corner.
_V3_MOBILENET: dict[str, Any] = {
    "architecture": "deeplabv3",
    "backbone": "mobilenet_v2",
    "atrous_rates": (),
    "alignment": "corner",
}


def _v3() -> tuple[Variant, ...]:
    # At stride 8 the spec doubles the rates by itself. The paper's best scores also average scales 0.5 to 1.75 and mirror images; which
    # of them are worth their cost is left to whoever runs it.
    return (
        *(_named(f"deeplabv3-{name}", _on("v3, table 5", name), backbone=name, **_V3) for name in _RESNETS),
        *(
            _named(f"deeplabv3-{name}-os8", _on("v3, table 6", name), backbone=name, **{**_V3, "output_stride": 8})
            for name in _RESNETS
        ),
        *(_named(f"deeplabv3-{name}-cascade", _on("v3, table 3", name), backbone=name, **_CASCADE) for name in _RESNETS),
        _named("deeplabv3-mobilenet_v2", "released code, model zoo", **_V3_MOBILENET),
    )


# v3+ (arXiv 1802.02611)

_V3PLUS: dict[str, Any] = {"architecture": "deeplabv3plus", "output_stride": 16, "atrous_rates": (6, 12, 18), "separable": True}


def _v3plus() -> tuple[Variant, ...]:
    # The encoder on ResNet is the v3 that gave 77.21 %, so it has its multi-grid; its convolutions are plain up to table 4. MobileNetV2
    # with a decoder is in no table; it has the decoder of Xception. How cells are aligned the paper does not say: by their centres.
    resnet = {**_V3PLUS, "separable": False, "entry_rate": "own", "multi_grid": (1, 2, 4)}
    xception = {**_V3PLUS, "backbone": "xception65"}
    lite = {**_V3PLUS, "backbone": "efficientnet_lite0"}
    return (
        *(_named(f"deeplabv3plus-{name}", _on("v3+, tables 1 to 3", name), backbone=name, **resnet) for name in _RESNETS),
        _named("deeplabv3plus-mobilenet_v2", "v3+, section 3, on MobileNetV2", backbone="mobilenet_v2", **_V3PLUS),
        _named("deeplabv3plus-efficientnet_lite0", "in no paper: v3+ on EfficientNet-Lite0", **lite),
        _named("deeplabv3plus-xception65", "v3+, table 5", **xception),
        _named("deeplabv3plus-xception65-os8", "v3+, table 5", **{**xception, "output_stride": 8}),
    )


def _on(source: str, backbone: str) -> str:
    """Return the source of a system; all these tables are of ResNet-101."""
    return source if backbone == "resnet101" else f"{source}, on ResNet-50"


def _named(name: str, source: str, *, multiscale: MultiScaleSpec | None = None, **network: Any) -> Variant:
    spec = NetworkSpec(n_classes=PASCAL_CLASSES, **network)
    return Variant(name=name, network=spec, multiscale=multiscale or MultiScaleSpec(), source=source)
