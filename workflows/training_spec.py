"""What does a training run do? The settings of one run, and how they are written in TOML.

::

    name = "fields"
    output = "../runs/fields"             # paths are relative to the file
    recipe = "small"                      # defaults after a paper: v1, v2, v3, v3plus; or small
    init = "dubai-mobilenetv2"            # a shipped model, "efficientnet-lite0" (ImageNet), or a file

    [[classes]]
    name = "building"
    color = "#3c1098"

    [[train]]                             # one scene; a glob names its parts in row order
    image = "north.tif"
    label = "north.gpkg"                  # polygons, or a raster of class ids or colours
    attribute = "kind"

    [[test]]                              # measured at the end, never trained on, never chosen by
    image = "south.tif"
    label = "south_labels.tif"

    [split]                               # what is held out to choose the best weights by
    by = "block"
    validation = 0.2

    [schedule]
    n_steps = 1000
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.crf.energy import CrfSpec
from pipeline.errors import SpecError
from pipeline.network.keys import check_choice, check_keys
from pipeline.network.models import resolve_start
from pipeline.network.spec import ClassSpec, MultiScaleSpec, NetworkSpec
from workflows.recipes import with_recipe
from workflows.split import SplitSpec
from workflows.training_loss import LossSpec
from workflows.training_scenes import SceneEntry
from workflows.training_schedule import OptimizerSpec, PhaseSpec, ScheduleSpec
from workflows.window_sampler import Augmentation, SamplingSpec

LabelKind = Literal["colors", "ids"]
"""Label rasters hold the classes' colours, or class ids in one band."""

Precision = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of the training pass; fp16 on CUDA only, with scaled gradients."""

TrainDevice = Literal["auto", "cpu", "cuda"]
"""Where the network is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """Everything one training run depends on."""

    name: str
    """Name of the model; the checkpoint is ``<output>/<name>.safetensors``."""
    output: Path
    """Folder for the checkpoint, the state to resume from, tables and pictures."""
    classes: tuple[ClassSpec, ...]
    """Class 0, 1, ...."""
    train: tuple[SceneEntry, ...]
    """Scenes that windows are drawn from."""
    validation: tuple[SceneEntry, ...] = ()
    """Scenes that the best weights are chosen by; or ``split`` holds a part of the training scenes out."""
    test: tuple[SceneEntry, ...] = ()
    """Scenes that the finished model is measured on."""
    recipe: str | None = None
    """Where the defaults came from; None: from this program."""
    labels: LabelKind = "colors"
    """How label rasters are written."""
    label_colors: tuple[str, ...] = ()
    """Colours ``#rrggbb`` of the classes in the label rasters, where they are not those that the model shows; empty: the same."""
    ignored_colors: tuple[str, ...] = ()
    """Label colours ``#rrggbb`` that mean "no label"."""
    label_values: tuple[tuple[str, str], ...] = ()
    """(value in a label raster or polygon's attribute, class name or "ignore"); empty: ids, or the names of the classes."""
    bands: tuple[str, ...] = ("red", "green", "blue")
    """Names of the image's bands."""
    mean: tuple[float, ...] | None = None
    """Per band, image units; None: measured on the training scenes."""
    std: tuple[float, ...] | None = None
    """Per band, image units; None: measured on the training scenes."""
    input_range: tuple[float, float] = (0.0, 255.0)
    """Lowest and highest value that the network sees; scenes of another range are scaled to it, as when they are segmented."""
    gsd_m: float | None = None
    """Ground sample distance, m, where known."""
    licence: str = "unknown"
    """Licence of the resulting weights."""
    init: Path | None = None
    """Start: a checkpoint (.safetensors, also of other classes or bands) or ImageNet weights (.pth: EfficientNet-Lite0, folded
    MobileNetV2); None: random."""
    seed: int = 0
    """Of everything random."""
    threads: int | None = None
    """CPU threads of torch; None: its default."""
    device: TrainDevice = "auto"
    """Where the network is trained; ``auto`` is CUDA where there is one."""
    precision: Precision = "bf16"
    """Arithmetic of the training pass; measurements are made in float32."""
    network: NetworkSpec
    """The network; ``n_classes`` and ``n_bands`` follow from ``classes`` and ``bands``."""
    split: SplitSpec = field(default_factory=SplitSpec)
    """What is held out of the training scenes."""
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    """How long and how fast."""
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    """By which rule."""
    loss: LossSpec = field(default_factory=LossSpec)
    """What is made small."""
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    """Where windows are placed."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How windows are varied."""
    multiscale: MultiScaleSpec = field(default_factory=MultiScaleSpec)
    """The scales that the model is to be run at by default; training and its measurements do not use them."""
    crf: CrfSpec | None = None
    """The CRF that suits the model, where one was found (`atrous crf search`)."""

    def __post_init__(self) -> None:
        for name, known in (("labels", LabelKind), ("precision", Precision), ("device", TrainDevice)):
            check_choice(name, getattr(self, name), get_args(known))
        if not self.train:
            raise SpecError("no [[train]] scene is given; add at least one image with its labels")
        if (self.mean is None) != (self.std is None):
            raise SpecError("only one of mean and std is given; give both, or neither to measure them")
        self._check_per_class("label_colors", self.label_colors)
        self._check_per_class("loss.class_weights", self.loss.class_weights or ())
        self._check_label_values()
        self._check_strides()
        if self.validation and self.split.by != "entries":
            raise SpecError(
                f"[[validation]] scenes are given and [split] holds {self.split.by}s out as well; choose one of the two"
            )

    @property
    def checkpoint_path(self) -> Path:
        """Where the model is written."""
        return self.output / f"{self.name}.safetensors"

    @property
    def raster_colors(self) -> tuple[str, ...] | None:
        """``#rrggbb`` of class 0, 1, ... in label rasters; None where they hold ids."""
        if self.labels == "ids":
            return None
        return self.label_colors or tuple(one.color for one in self.classes)

    @property
    def trains_for(self) -> dict[str, Any]:
        """What decides the weights, as JSON holds it: all but where results go and how fast they come; of files, their names."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), default=lambda path: path.name))
        for name in ("name", "output", "threads", "device", "licence", "test", "multiscale", "crf"):
            del values[name]
        return values

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
            return _parse(with_recipe(values), Path(path).parent)
        except (TypeError, AttributeError) as error:
            raise SpecError(f"a value in {path} is of the wrong kind ({error}); see the documented example") from error

    def _check_per_class(self, name: str, given: tuple[object, ...]) -> None:
        if given and len(given) != len(self.classes):
            values = "colours" if "color" in name else "values"
            raise SpecError(f"{name} has {len(given)} {values}; there are {len(self.classes)} classes, give one for each")

    def _check_label_values(self) -> None:
        known = {one.name for one in self.classes} | {"ignore"}
        for value, name in self.label_values:
            if name not in known:
                raise SpecError(f"label_values gives {value!r} the class {name!r}; known are {', '.join(sorted(known))}")

    def _check_strides(self) -> None:
        for phase in self.schedule.phases:
            stride = phase.output_stride or self.network.output_stride
            if self.schedule.window_px % stride:
                raise SpecError(
                    f"schedule.window_px is {self.schedule.window_px}; a multiple of the output stride {stride} is needed, for example "
                    f"{self.schedule.window_px // stride * stride}"
                )


_SECTIONS: dict[str, type[Any]] = {
    "split": SplitSpec,
    "optimizer": OptimizerSpec,
    "loss": LossSpec,
    "sampling": SamplingSpec,
    "augmentation": Augmentation,
}


def _parse(values: dict[str, Any], folder: Path) -> TrainSpec:
    check_keys({"network": {}, **values}, TrainSpec, where="the training configuration")
    given: dict[str, Any] = dict(values)
    given["output"] = folder / values["output"]
    if "init" in values:
        given["init"] = resolve_start(values["init"], folder)
    given["classes"] = tuple(_build(ClassSpec, one, where="[[classes]]") for one in values["classes"])
    for part in ("train", "validation", "test"):
        given[part] = tuple(_parse_entry(one, folder, where=f"[[{part}]]") for one in values.get(part, ()))
    for name in ("label_colors", "ignored_colors", "bands", "mean", "std", "input_range"):
        if name in values:
            given[name] = tuple(values[name])
    if "label_values" in values:
        given["label_values"] = tuple((str(value), name) for value, name in values["label_values"].items())
    given["network"] = _parse_network(values.get("network", {}), given)
    given["schedule"] = _parse_schedule(values.get("schedule", {}))
    if "multiscale" in values:
        given["multiscale"] = MultiScaleSpec.from_dict(values["multiscale"])
    if "crf" in values:
        given["crf"] = CrfSpec.from_dict(values["crf"])
    for name, spec in _SECTIONS.items():
        given[name] = _build(spec, values.get(name, {}), where=f"[{name}]")
    return TrainSpec(**given)


def _parse_network(values: dict[str, Any], given: dict[str, Any]) -> NetworkSpec:
    default_bands = next(f.default for f in fields(TrainSpec) if f.name == "bands")
    n_bands = len(given.get("bands", default_bands if default_bands is not MISSING else ()))
    return NetworkSpec.from_dict({**values, "n_classes": len(given["classes"]), "n_bands": n_bands})


def _parse_schedule(values: dict[str, Any]) -> ScheduleSpec:
    given = dict(values)
    if "phases" in values:
        given["phases"] = [_build(PhaseSpec, one, where="[[schedule.phases]]") for one in values["phases"]]
    found: ScheduleSpec = _build(ScheduleSpec, given, where="[schedule]")
    return found


def _parse_entry(values: dict[str, Any], folder: Path, *, where: str) -> SceneEntry:
    named = {"name": values.get("image", ""), **values}
    check_keys(named, SceneEntry, where=where)
    paths = {name: folder / values[name] for name in ("image", "label")}
    found: SceneEntry = _build(SceneEntry, {**named, **paths}, where=where)
    return found


def _build(spec: type[Any], values: dict[str, Any], *, where: str) -> Any:
    check_keys(values, spec, where=where)
    return spec(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
