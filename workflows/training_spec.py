"""What does a training run do? The settings of one run, and how they are written in TOML.

::

    name = "dubai-mobilenetv2"
    output = "../runs/dubai"              # paths are relative to the file
    labels = "colors"                     # or "ids"
    ignored_colors = ["#9b9b9b"]

    [[classes]]
    name = "building"
    color = "#3c1098"

    [[train]]                             # one scene; a glob names its parts in row order
    name = "tile1"
    image = "tile1/images/*.jpg"
    label = "tile1/masks/*.png"
    mosaic = [3, 3]                       # without it every file is a scene of its own

    [[test]]                              # measured at the end, never trained on, never chosen by
    image = "tile2.tif"
    label = "tile2_labels.tif"

    [network]
    atrous_rates = [3, 6, 9]

    [schedule]
    n_steps = 1000
"""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.errors import SpecError
from pipeline.network.keys import check_keys
from pipeline.network.spec import ClassSpec, NetworkSpec
from workflows.training_data import Augmentation

LabelKind = Literal["colors", "ids"]
"""Label rasters hold the classes' colours, or class ids in one band."""

Precision = Literal["bf16", "fp32"]
"""Arithmetic of the training pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneEntry:
    """One scene of the data: an image and its labels, whole or in parts."""

    image: Path
    """Raster, or a glob of its parts; parts are sorted by name."""
    label: Path
    """Label raster of the same pixels, or a glob that sorts in the same order."""
    name: str = ""
    """What reports call it; by default the image's path."""
    mosaic: tuple[int, int] | None = None
    """(rows, columns) of the parts in row order; None: every file is a scene of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """How long and how fast: AdamW under poly decay, (1 - step / n_steps) ** 0.9 (DeepLab v2)."""

    n_steps: int = 1000
    """Updates of the weights; the last weights are kept, none are selected."""
    batch: int = 8
    """Windows per update, at least 2 (batch normalisation)."""
    window_px: int = 384
    """Side of a training window, px; a multiple of the output stride."""
    learning_rate: float = 1e-3
    """Of ASPP, decoder and classifier at the first step."""
    backbone_factor: float = 0.2
    """The backbone learns at ``backbone_factor * learning_rate``, since it starts trained."""
    weight_decay: float = 1e-2
    """AdamW's decoupled decay of convolution kernels; biases and normalisations do not decay."""
    checkpoint_every: int = 100
    """Steps between intermediate checkpoints."""

    def __post_init__(self) -> None:
        limits = {"n_steps": 1, "batch": 2, "window_px": 32, "checkpoint_every": 1}
        for name, lowest in limits.items():
            if getattr(self, name) < lowest:
                raise SpecError(f"schedule.{name} is {getattr(self, name)}; give at least {lowest}")
        if not (self.learning_rate > 0 and self.backbone_factor >= 0 and self.weight_decay >= 0):
            raise SpecError(
                f"schedule has learning_rate {self.learning_rate}, backbone_factor {self.backbone_factor} "
                "and weight_decay "
                f"{self.weight_decay}; the first must be above 0, the others 0 or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """Everything one training run depends on."""

    name: str
    """Name of the model; the checkpoint is ``<output>/<name>.safetensors``."""
    output: Path
    """Folder for the checkpoint and ``metrics.csv``."""
    classes: tuple[ClassSpec, ...]
    """Class 0, 1, ...."""
    train: tuple[SceneEntry, ...]
    """Scenes that windows are drawn from, each as often as the others."""
    test: tuple[SceneEntry, ...] = ()
    """Scenes that the finished model is measured on."""
    labels: LabelKind = "colors"
    """How label rasters are written."""
    label_colors: tuple[str, ...] = ()
    """Colours ``#rrggbb`` of the classes in the label rasters, where they are not those that the model shows; empty: the same."""
    ignored_colors: tuple[str, ...] = ()
    """Label colours ``#rrggbb`` that mean "no label"."""
    bands: tuple[str, ...] = ("red", "green", "blue")
    """Names of the image's bands."""
    mean: tuple[float, ...] | None = None
    """Per band, image units; None: measured on the training scenes."""
    std: tuple[float, ...] | None = None
    """Per band, image units; None: measured on the training scenes."""
    input_range: tuple[float, float] = (0.0, 255.0)
    """Lowest and highest value of the images."""
    gsd_m: float | None = None
    """Ground sample distance, m, where known."""
    licence: str = "unknown"
    """Licence of the resulting weights."""
    init: Path | None = None
    """Start: folded ImageNet MobileNetV2 (.pth) or a checkpoint (.safetensors); None: random."""
    seed: int = 0
    """Of everything random."""
    threads: int | None = None
    """CPU threads of torch; None: its default."""
    precision: Precision = "bf16"
    """Arithmetic of the training pass; measurements are made in float32."""
    network: NetworkSpec
    """The network; ``n_classes`` and ``n_bands`` follow from ``classes`` and ``bands``."""
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    """How long and how fast."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How windows are varied."""

    def __post_init__(self) -> None:
        for name, given, known in (
            ("labels", self.labels, get_args(LabelKind)),
            ("precision", self.precision, get_args(Precision)),
        ):
            if given not in known:
                raise SpecError(f"{name} is {given!r}; choose one of {', '.join(known)}")
        if self.label_colors and len(self.label_colors) != len(self.classes):
            raise SpecError(
                f"label_colors has {len(self.label_colors)} colours; there are {len(self.classes)} classes, give one for each"
            )
        if not self.train:
            raise SpecError("no [[train]] scene is given; add at least one image with its labels")
        if (self.mean is None) != (self.std is None):
            raise SpecError("only one of mean and std is given; give both, or neither to measure them")
        if self.schedule.window_px % self.network.output_stride:
            raise SpecError(
                f"schedule.window_px is {self.schedule.window_px}; a multiple of the output stride "
                f"{self.network.output_stride} is "
                "needed, for example "
                f"{self.schedule.window_px // self.network.output_stride * self.network.output_stride}"
            )

    @property
    def checkpoint_path(self) -> Path:
        """Where the model is written."""
        return self.output / f"{self.name}.safetensors"

    @classmethod
    def from_toml(cls, path: Path) -> TrainSpec:
        """Read the settings; relative paths are relative to the file.

        Raises
        ------
        SpecError
            If the file is no TOML, has an unknown or missing key, or a value of the wrong kind.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SpecError(f"the training configuration {path} cannot be read ({error}); give a TOML file") from error
        try:
            return _parse(values, Path(path).parent)
        except (TypeError, AttributeError) as error:
            raise SpecError(f"a value in {path} is of the wrong kind ({error}); see the documented example") from error


def _parse(values: dict[str, Any], folder: Path) -> TrainSpec:
    check_keys({"network": {}, **values}, TrainSpec, where="the training configuration")
    given: dict[str, Any] = dict(values)
    given["output"] = folder / values["output"]
    if "init" in values:
        given["init"] = folder / values["init"]
    given["classes"] = tuple(_build(ClassSpec, one, where="[[classes]]") for one in values["classes"])
    for part in ("train", "test"):
        given[part] = tuple(_parse_entry(one, folder, where=f"[[{part}]]") for one in values.get(part, ()))
    for name in ("label_colors", "ignored_colors", "bands", "mean", "std", "input_range"):
        if name in values:
            given[name] = tuple(values[name])
    given["network"] = _parse_network(values.get("network", {}), given)
    given["schedule"] = _build(ScheduleSpec, values.get("schedule", {}), where="[schedule]")
    given["augmentation"] = _build(Augmentation, values.get("augmentation", {}), where="[augmentation]")
    return TrainSpec(**given)


def _parse_network(values: dict[str, Any], given: dict[str, Any]) -> NetworkSpec:
    default_bands = next(f.default for f in fields(TrainSpec) if f.name == "bands")
    n_bands = len(given.get("bands", default_bands if default_bands is not MISSING else ()))
    return NetworkSpec.from_dict({**values, "n_classes": len(given["classes"]), "n_bands": n_bands})


def _parse_entry(values: dict[str, Any], folder: Path, *, where: str) -> SceneEntry:
    check_keys(values, SceneEntry, where=where)
    mosaic = tuple(values["mosaic"]) if "mosaic" in values else None
    image, label = folder / values["image"], folder / values["label"]
    return SceneEntry(image=image, label=label, name=values.get("name", values["image"]), mosaic=mosaic)


def _build(spec: type[Any], values: dict[str, Any], *, where: str) -> Any:
    check_keys(values, spec, where=where)
    return spec(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
