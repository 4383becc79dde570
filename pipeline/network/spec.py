"""What is a network, and what must travel with its weights so that it can be run?

``NetworkSpec`` says how the layers are built; ``ModelSpec`` adds what the numbers mean: classes, bands,
normalisation, origin. Both turn into plain dictionaries and back, without loss.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_args

from pipeline.crf.energy import CrfSpec
from pipeline.errors import SpecError
from pipeline.network.backbones import backbone_knobs
from pipeline.network.choices import (
    BACKBONE_KNOBS,
    Alignment,
    Architecture,
    BottleneckStride,
    EntryRate,
    Fusion,
    ImagePooling,
    Padding,
    Stem,
)
from pipeline.network.keys import check_choice, check_keys

MAX_CLASSES = 255
"""Labels are one byte and 255 means nodata."""
LOW_LEVEL_STRIDE = 4
"""Input pixels per cell of the low-level features, which v3+ joins with the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """How the layers of one DeepLab are built."""

    n_classes: int
    """Channels of the logits, 1 to 255."""
    architecture: Architecture = "deeplabv3plus"
    """Which member of the family."""
    backbone: str = "mobilenet_v2"
    """The feature extractor, a name of `known_backbones`."""
    n_bands: int = 3
    """Channels of the input, at least 1."""
    output_stride: int = 16
    """Input pixels per cell of the backbone's last features: 8, 16, or 32, at which nothing is atrous."""
    alignment: Alignment = "centre"
    """Where the cells of the features lie; ``corner`` is what ``align_corners=True`` means on sizes of k * output stride + 1."""

    backbone_width: float = 1.0
    """Factor on the channels of MobileNetV2, above 0."""
    backbone_eps: float | None = None
    """Added to variances by the backbone's normalisations; None: as its authors' code has it."""
    final_expansion: bool = False
    """Whether MobileNetV2 ends with its 1 x 1 convolution to 1280 channels, made for classification."""
    stem: Stem = "plain"
    """The first layers of a ResNet."""
    bottleneck_stride: BottleneckStride = "3x3"
    """Which convolution of a ResNet bottleneck has the stride."""
    entry_rate: EntryRate = "previous"
    """Atrous rate of the block in which a stride became a rate."""
    multi_grid: tuple[int, ...] = (1, 1, 1)
    """Factors on the atrous rates of the three blocks of a ResNet's last stage, and of each cascaded one (v3, section 3.2.1), or of
    MobileNetV2's last three blocks."""
    cascade_blocks: int = 0
    """Copies of a ResNet's last stage behind it, 0 to 3, instead of an ASPP (v3, section 3.2: block5 to block7)."""
    padding: Padding = "symmetric"
    """Zeros around strided convolutions; TensorFlow's "SAME" pads even sizes at right and bottom only."""

    atrous_rates: tuple[int, ...] = (6, 12, 18)
    """Rates of the context's atrous branches. v1 and v2: in cells of the features, as the papers give them for output stride 8.
    v3 and v3+: at output stride 16; at 8 they are doubled (v3, section 3.3), at 32 halved. Empty: no such branch (v3 and v3+ only)."""
    head_kernel: int = 3
    """Side of fc6, the first layer of the branches of v1 and v2, 1 to 7."""
    head_channels: int = 0
    """Channels of fc6 and fc7 in each branch of v1 and v2 (VGG); 0: the branch is one convolution to the classes (v2, ResNet)."""
    side_channels: int = 0
    """Channels of each branch from the image and the early layers of v1's MSc; 0: no such branches."""
    image_pooling: ImagePooling = "window"
    """What the image-level branch of the ASPP averages over; ``off``: there is no such branch. v1 and v2 never have one."""
    separable: bool = True
    """Whether the 3 x 3 convolutions of ASPP and decoder are depthwise + pointwise (v3+, section 3.1)."""
    aspp_separable: bool | None = None
    """The same for those of the ASPP alone; None: as ``separable`` says."""
    separable_norm: bool = True
    """Whether normalisation and activation stand between the two (v3+), or only behind them (segmentation_models_pytorch)."""
    aspp_channels: int = 256
    """Channels of each ASPP branch and of their projection."""
    projection_kernel: int = 1
    """Side of the convolution that projects the concatenated branches, 1 (v3) or 3 (mmsegmentation)."""
    context_convolutions: int = 0
    """3 x 3 convolutions between ASPP and classifier or decoder: 0 (v3), 1 (torchvision, segmentation_models_pytorch)."""
    low_level_channels: int = 48
    """Channels the stride-4 features are reduced to before the decoder joins them."""
    decoder_channels: int = 256
    """Channels of the decoder's 3 x 3 convolutions."""
    decoder_convolutions: int = 2
    """3 x 3 convolutions of the decoder (v3+, table 2), at least 1."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if not 1 <= self.n_classes <= MAX_CLASSES:
            raise SpecError(f"n_classes is {self.n_classes}; labels are one byte, give 1 to {MAX_CLASSES} classes")
        for name in ("n_bands", "aspp_channels", "low_level_channels", "decoder_channels", "decoder_convolutions", "head_kernel"):
            _check_whole(name, getattr(self, name), lowest=1)
        for name in ("head_channels", "side_channels", "context_convolutions"):
            _check_whole(name, getattr(self, name), lowest=0)
        self._check_context()
        self._check_backbone()
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Refuse what no file holds: a description may come from a stranger, and a network is built from it before its weights are read."""
        for name, highest in _HIGHEST.items():
            if getattr(self, name) > highest:
                raise SpecError(f"{name} is {getattr(self, name)}; give at most {highest}")
        n_rates, largest = len(self.atrous_rates), max(self.atrous_rates, default=0)
        if n_rates > _MAX_RATES or largest > _MAX_RATE:
            raise SpecError(
                f"{n_rates} atrous_rates up to {largest} were given; give at most {_MAX_RATES}, each at most {_MAX_RATE}"
            )

    def _check_context(self) -> None:
        if not self.atrous_rates and self.has_score_branches:
            raise SpecError(f"atrous_rates is empty; {self.architecture} needs at least one rate, for example (6, 12, 18, 24)")
        for rate in self.atrous_rates:
            _check_whole("atrous_rates", rate, lowest=1)
        if self.has_score_branches and any(rate * (self.head_kernel - 1) % 2 for rate in self.atrous_rates):
            raise SpecError(
                f"head_kernel is {self.head_kernel} with atrous_rates {self.atrous_rates}; an even kernel needs even rates, or its "
                "cells would lie between those of the features"
            )
        if self.side_channels and self.architecture != "deeplabv1":
            raise SpecError(
                f"side_channels is {self.side_channels} with {self.architecture}; only deeplabv1 has MSc branches, give 0"
            )
        if self.cascade_blocks and self.architecture != "deeplabv3":
            raise SpecError(
                f"cascade_blocks is {self.cascade_blocks} with {self.architecture}; only deeplabv3 is cascaded, give 0"
            )
        if self.aspp_separable is not None and not self.has_aspp:
            raise SpecError(f"aspp_separable is {self.aspp_separable} and this network has no ASPP; leave it out")
        if self.image_pooling != "off" and not self.has_aspp:
            raise SpecError(
                f"image_pooling is {self.image_pooling!r} and this network has no ASPP to hold that branch; give image_pooling 'off'"
            )

    def _check_backbone(self) -> None:
        heeded = backbone_knobs(self.backbone)
        defaults = {f.name: f.default for f in fields(type(self))}
        for name in BACKBONE_KNOBS:
            if name not in heeded and getattr(self, name) != defaults[name]:
                raise SpecError(
                    f"{name} is {getattr(self, name)!r}; the backbone {self.backbone} has no such choice, leave it out"
                )
        if len(self.multi_grid) != 3:
            raise SpecError(
                f"multi_grid is {self.multi_grid}; it is for the last three blocks of a backbone, give three factors: (1, 2, 4)"
            )
        for factor in self.multi_grid:
            _check_whole("multi_grid", factor, lowest=1)
        if not self.backbone_width > 0 or not math.isfinite(self.backbone_width):
            raise SpecError(f"backbone_width is {self.backbone_width}; give a factor above 0, for example 0.5")
        if self.backbone_eps is not None and not 0 < self.backbone_eps < 1:
            raise SpecError(f"backbone_eps is {self.backbone_eps}; give a number between 0 and 1, for example 1e-5")

    @property
    def has_score_branches(self) -> bool:
        """Whether classes are scored by branches that are summed (v1, v2)."""
        return self.architecture in ("deeplabv1", "deeplabv2")

    @property
    def has_aspp(self) -> bool:
        """Whether branches are concatenated and projected (v3 without cascade, v3+)."""
        return not self.has_score_branches and not self.cascade_blocks

    @property
    def score_stride(self) -> int:
        """Input pixels per cell of the scores: that of the decoder where there is one, else the output stride."""
        return LOW_LEVEL_STRIDE if self.architecture == "deeplabv3plus" else self.output_stride

    @property
    def effective_atrous_rates(self) -> tuple[int, ...]:
        """The rates in cells of the backbone's last features: in v3 and v3+ doubled at output stride 8, halved at 32."""
        if self.has_score_branches:
            return self.atrous_rates
        return tuple(max(rate * 16 // self.output_stride, 1) for rate in self.atrous_rates)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {**asdict(self), "atrous_rates": list(self.atrous_rates), "multi_grid": list(self.multi_grid)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkSpec:
        """Build the spec that ``to_dict`` wrote; raises SpecError on an unknown or missing key."""
        check_keys(values, cls, where="the network's description")
        given = dict(values)
        for name in ("atrous_rates", "multi_grid"):
            if name in given:
                given[name] = tuple(given[name])
        return cls(**given)


_HIGHEST: dict[str, int] = {
    **dict.fromkeys(("aspp_channels", "low_level_channels", "decoder_channels", "head_channels", "side_channels"), 2**14),
    **dict.fromkeys(("decoder_convolutions", "context_convolutions", "head_kernel"), 64),
    "n_bands": 1024,
    "backbone_width": 64,
}
_MAX_RATES, _MAX_RATE = 64, 2**14
_CHOICES: dict[str, tuple[object, ...]] = {
    "architecture": get_args(Architecture),
    "alignment": get_args(Alignment),
    "stem": get_args(Stem),
    "bottleneck_stride": get_args(BottleneckStride),
    "entry_rate": get_args(EntryRate),
    "image_pooling": get_args(ImagePooling),
    "padding": get_args(Padding),
    "output_stride": (8, 16, 32),
    "cascade_blocks": (0, 1, 2, 3),
    "projection_kernel": (1, 3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiScaleSpec:
    """At which sizes, and whether also mirrored, a network sees each window."""

    scales: tuple[float, ...] = (1.0,)
    """Factors on the side of the window, above 0; v2 has (0.5, 0.75, 1.0), v3 0.5 to 1.75."""
    flip: bool = False
    """Whether the window is also seen mirrored, left to right."""
    fusion: Fusion = "mean"
    """How the answers become one: the maximum of the scores (v2, section 3.2), or the mean of the probabilities (v3, section 4)."""

    def __post_init__(self) -> None:
        check_choice("fusion", self.fusion, get_args(Fusion))
        if not self.scales:
            raise SpecError("no scales were given; give at least one, for example 1.0")
        for scale in self.scales:
            if not 0 < scale <= 8:
                raise SpecError(f"a scale of {scale} was given; give factors above 0 and up to 8, for example 0.5,0.75,1.0")
        if len(set(self.scales)) != len(self.scales):
            raise SpecError(f"the scales {', '.join(map(str, self.scales))} name one twice; give each once")

    @property
    def is_single(self) -> bool:
        """Whether the network sees every window once, as it is."""
        return self.scales == (1.0,) and not self.flip

    @property
    def views(self) -> tuple[tuple[float, bool], ...]:
        """(scale, mirrored) of each time that the network sees a window."""
        return tuple((scale, flip) for scale in self.scales for flip in ((False, True) if self.flip else (False,)))

    @property
    def relative_cost(self) -> float:
        """Pixels that the network sees per pixel of a window."""
        return sum(scale**2 for scale, _ in self.views)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {**asdict(self), "scales": list(self.scales)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MultiScaleSpec:
        """Build the spec that ``to_dict`` wrote; raises SpecError on an unknown or missing key."""
        check_keys(values, cls, where="the description of scales")
        return cls(**{**values, "scales": tuple(values.get("scales", (1.0,)))})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSpec:
    """One class of a model."""

    name: str
    """What a pixel of the class shows; not empty."""
    color: str
    """How it is drawn, ``#rrggbb``."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise SpecError("a class without a name was given; name every class")
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.color):
            raise SpecError(f"class {self.name!r} has the colour {self.color!r}; write it as #rrggbb, e.g. #3c1098")

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, each 0 to 255."""
        return int(self.color[1:3], 16), int(self.color[3:5], 16), int(self.color[5:7], 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A network and everything that is needed to run it on a scene."""

    name: str
    """What users call it."""
    network: NetworkSpec
    """How its layers are built."""
    classes: tuple[ClassSpec, ...]
    """Meaning of logit channel 0, 1, ...; as many as ``network.n_classes``."""
    bands: tuple[str, ...]
    """Meaning of input channel 0, 1, ...; as many as ``network.n_bands``."""
    mean: tuple[float, ...]
    """Subtracted from each band, in model input units."""
    std: tuple[float, ...]
    """Each band is divided by it afterwards, in model input units, above 0."""
    input_range: tuple[float, float] = (0.0, 255.0)
    """Lowest and highest value of the model input units; scenes of another range are scaled to it first."""
    multiscale: MultiScaleSpec = field(default_factory=MultiScaleSpec)
    """The scales that the model is meant to be run at; ``--scales`` and ``--flip`` override them."""
    crf: CrfSpec | None = None
    """The CRF that was found for this model; None: none was. ``--crf`` takes it unless a preset is named."""
    gsd_m: float | None = None
    """Ground sample distance of the training scenes, m, or None where it is not known."""
    licence: str = "unknown"
    """Licence of the weights."""
    provenance: dict[str, Any] = field(default_factory=dict, hash=False)
    """Where the weights come from: data, split, steps, metrics; anything JSON holds."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise SpecError("a model without a name was given; name it")
        self._check_counts()
        if len({c.name for c in self.classes}) != len(self.classes):
            raise SpecError(f"two classes of model {self.name!r} have one name; make the names differ")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std, *self.input_range)):
            raise SpecError(f"mean, std or input_range of model {self.name!r} is not a finite number; correct it")
        if min(self.std) <= 0:
            raise SpecError(f"std of model {self.name!r} is {self.std}; every value must be above 0")
        if self.input_range[0] >= self.input_range[1]:
            raise SpecError(f"input_range is {self.input_range}; the first value must be below the second")
        if self.gsd_m is not None and not self.gsd_m > 0:
            raise SpecError(f"gsd_m is {self.gsd_m}; give metres above 0, or leave it out where it is unknown")
        if self.crf is not None:
            self.crf.check_fits(n_classes=self.network.n_classes, n_bands=self.network.n_bands)

    def _check_counts(self) -> None:
        counts = {
            "classes": self.network.n_classes,
            "bands": self.network.n_bands,
            "mean": self.network.n_bands,
            "std": self.network.n_bands,
            "input_range": 2,
        }
        for name, expected in counts.items():
            given = len(getattr(self, name))
            if given != expected:
                raise SpecError(f"{name} of model {self.name!r} has {given} entries; {expected} are needed, give as many")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        plain = {name: list(getattr(self, name)) for name in ("bands", "mean", "std", "input_range")}
        classes = [asdict(c) for c in self.classes]
        nested = {"network": self.network.to_dict(), "multiscale": self.multiscale.to_dict(), "classes": classes}
        found = {**asdict(self), **plain, **nested}
        if self.crf is None:  # left out, so that the header of a model without one is as it always was
            del found["crf"]
        return found

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """Build the spec that ``to_dict`` wrote; raises SpecError on an unknown or missing key."""
        check_keys(values, cls, where="the model's description")
        given = dict(values)
        for name in ("bands", "mean", "std", "input_range"):
            if name in given:
                given[name] = tuple(given[name])
        for one in given["classes"]:
            check_keys(one, ClassSpec, where="a class of the model's description")
        given["classes"] = tuple(ClassSpec(**one) for one in given["classes"])
        given["network"] = NetworkSpec.from_dict(given["network"])
        if "multiscale" in given:
            given["multiscale"] = MultiScaleSpec.from_dict(given["multiscale"])
        if given.get("crf") is not None:
            given["crf"] = CrfSpec.from_dict(given["crf"])
        return cls(**given)


def _check_whole(name: str, given: object, *, lowest: int) -> None:
    if not isinstance(given, int) or isinstance(given, bool) or given < lowest:
        raise SpecError(f"{name} is {given!r}; give a whole number of at least {lowest}")


def with_image_pooling(spec: NetworkSpec, mode: ImagePooling | None) -> NetworkSpec:
    """Return ``spec`` with its image-level branch in another mode; None: as it is.

    Raises
    ------
    SpecError
        If the network has no such branch and one is asked for.
    """
    if mode is None or mode == spec.image_pooling:
        return spec
    if spec.image_pooling == "off":
        raise SpecError(
            f"--image-pooling {mode} was asked for; the network has no image-level branch, so nothing is averaged: leave the option out"
        )
    return replace(spec, image_pooling=mode)
