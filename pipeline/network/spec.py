"""What is a network, and what must travel with its weights so that it can be run?

``NetworkSpec`` says how the layers are built; ``ModelSpec`` adds what the numbers mean: classes, bands,
normalisation, origin. Both turn into plain dictionaries and back, without loss.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from pipeline.errors import SpecError
from pipeline.network.keys import check_keys
from pipeline.network.variants import Architecture, Backbone, ImagePooling, Padding

MAX_CLASSES = 255
"""Labels are one byte and 255 means nodata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """How the layers of one DeepLab are built."""

    n_classes: int
    """Channels of the logits, 1 to 255."""
    architecture: Architecture = "deeplabv3plus"
    """Which member of the family."""
    backbone: Backbone = "mobilenet_v2"
    """The feature extractor."""
    n_bands: int = 3
    """Channels of the input, at least 1."""
    output_stride: int = 16
    """Input pixels per cell of the backbone's last features, 8 or 16."""
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    """Rates of the ASPP's 3 x 3 branches at output stride 16; at 8 they are doubled (v3, section 3.3)."""
    image_pooling: ImagePooling = "window"
    """Whether the ASPP has an image-level branch: the mean over the window it is given, or none."""
    padding: Padding = "symmetric"
    """Zeros around strided convolutions; TensorFlow's "SAME" pads even sizes at right and bottom only."""
    separable: bool = True
    """Whether the 3 x 3 convolutions of ASPP and decoder are depthwise + pointwise (v3+, section 3.1)."""
    aspp_channels: int = 256
    """Channels of each ASPP branch and of their projection."""
    low_level_channels: int = 48
    """Channels the stride-4 features are reduced to before the decoder joins them."""
    decoder_channels: int = 256
    """Channels of the decoder's two 3 x 3 convolutions."""

    def __post_init__(self) -> None:
        _check_choice("architecture", self.architecture, get_args(Architecture))
        _check_choice("backbone", self.backbone, get_args(Backbone))
        _check_choice("image_pooling", self.image_pooling, get_args(ImagePooling))
        _check_choice("padding", self.padding, get_args(Padding))
        _check_choice("output_stride", self.output_stride, (8, 16))
        if not 1 <= self.n_classes <= MAX_CLASSES:
            raise SpecError(f"n_classes is {self.n_classes}; labels are one byte, give 1 to {MAX_CLASSES} classes")
        for name in ("n_bands", "aspp_channels", "low_level_channels", "decoder_channels"):
            _check_positive(name, getattr(self, name))
        if not self.atrous_rates:
            raise SpecError("atrous_rates is empty; give at least one rate, for example (6, 12, 18)")
        for rate in self.atrous_rates:
            _check_positive("atrous_rates", rate)

    @property
    def effective_atrous_rates(self) -> tuple[int, ...]:
        """The rates in cells of the backbone's last features: doubled at output stride 8."""
        return tuple(rate * 16 // self.output_stride for rate in self.atrous_rates)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {**asdict(self), "atrous_rates": list(self.atrous_rates)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkSpec:
        """Build the spec that ``to_dict`` wrote; raises SpecError on an unknown or missing key."""
        check_keys(values, cls, where="the network's description")
        given = dict(values)
        if "atrous_rates" in given:
            given["atrous_rates"] = tuple(given["atrous_rates"])
        return cls(**given)


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
        return {**asdict(self), **plain, "network": self.network.to_dict(), "classes": classes}

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
        return cls(**given)


def _check_choice(name: str, given: object, known: tuple[object, ...]) -> None:
    if given not in known:
        raise SpecError(f"{name} is {given!r}; choose one of {', '.join(map(str, known))}")


def _check_positive(name: str, given: object) -> None:
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise SpecError(f"{name} is {given!r}; give a whole number of at least 1")
