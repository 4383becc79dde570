"""How does a public checkpoint become a model of ours? Read, recognise, convert, describe, write; and say what was assumed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import SpecError, StoreError
from pipeline.network.checkpoint import StoredKernels, save_checkpoint
from pipeline.network.importers.convert import Converted, convert
from pipeline.network.importers.layout import Hints
from pipeline.network.importers.state import read_config, read_state
from pipeline.network.model_file import file_sha256
from pipeline.network.spec import ClassSpec, ModelSpec
from pipeline.network.voc import VOC_NAMES, voc_classes, voc_color

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What a person asks for."""

    file: Path
    """The foreign checkpoint."""
    out: Path
    """Where the model goes, ``.safetensors``."""
    hints: Hints = field(default_factory=Hints)
    """What the keys cannot tell and the person does."""
    layout: str | None = None
    """Name of the layout; None: recognised by the keys."""
    classes: Path | None = None
    """Text file with one class a line, by id: its name and, if wished, ``#rrggbb``."""
    name: str | None = None
    """What users call the model; None: the file's name."""
    licence: str = "unknown"
    """Licence of the weights."""
    kernels: StoredKernels = "float32"
    """How kernels are stored."""
    overwrite: bool = False
    """Replace ``out`` where it exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What came of it."""

    out: str
    """The model."""
    layout: str
    """What the file was recognised as."""
    n_tensors: int
    """Tensors that were taken."""
    left_out: tuple[str, ...]
    """Keys that were left out on purpose."""
    assumed: tuple[str, ...]
    """What neither keys nor the person told."""


def run(request: ImportRequest) -> ImportReport:
    """Import a checkpoint.

    Raises
    ------
    WeightsError
        If the file is unreadable, of an unknown layout, or does not fit it.
    SpecError
        If what the person says contradicts the file.
    StoreError
        If ``out`` exists or cannot be written.
    """
    _check_out(request)
    converted = convert(read_state(request.file), request.hints, read_config(request.file), layout=request.layout)
    assumed = list(converted.draft.assumed)
    model = _describe(request, converted, assumed)
    save_checkpoint(request.out, converted.network, model, kernels=request.kernels)
    return ImportReport(
        out=str(request.out),
        layout=converted.layout.title,
        n_tensors=len(converted.draft.keys.used),
        left_out=converted.left_out,
        assumed=tuple(assumed),
    )


def read_classes(path: Path) -> tuple[ClassSpec, ...]:
    """Return the classes of a text file: one a line, by id, a name and optionally a colour; empty lines are left out.

    Raises
    ------
    SpecError
        If the file cannot be read or holds no class.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--classes {path} cannot be read ({error}); give a text file with one class a line") from error
    found = [_class_of(line, index) for index, line in enumerate(line for line in lines if line)]
    if not found:
        raise SpecError(f"--classes {path} holds no class; write one a line, such as: water #1f78d1")
    return tuple(found)


def _class_of(line: str, index: int) -> ClassSpec:
    match = re.fullmatch(r"(.*?)[\s,]+(#[0-9a-fA-F]{6})", line)
    name, color = (match[1], match[2]) if match else (line, voc_color(index))
    return ClassSpec(name=name.strip(), color=color)


def _check_out(request: ImportRequest) -> None:
    if request.out.suffix != ".safetensors":
        raise SpecError(
            f"--out {request.out} was given; models are .safetensors files: try --out {request.out.with_suffix('.safetensors')}"
        )
    if request.out.exists() and not request.overwrite:
        raise StoreError(f"{request.out} exists and was left as it is; give another --out, or use --overwrite")


def _describe(request: ImportRequest, converted: Converted, assumed: list[str]) -> ModelSpec:
    network, preprocessing = converted.network.spec, converted.preprocessing
    given = {"mean": preprocessing.mean, "std": preprocessing.std}
    for name, values in given.items():
        if len(values) != network.n_bands:
            raise SpecError(
                f"{name} has {len(values)} values and the checkpoint has {network.n_bands} input bands; give as many with --{name}"
            )
    return ModelSpec(
        name=request.name or request.file.stem,
        network=network,
        classes=_classes(request, network.n_classes, assumed),
        bands=("red", "green", "blue") if network.n_bands == 3 else tuple(f"band {i + 1}" for i in range(network.n_bands)),
        mean=preprocessing.mean,
        std=preprocessing.std,
        input_range=preprocessing.input_range,
        multiscale=converted.draft.multiscale,
        licence=request.licence,
        provenance=_provenance(request, converted, assumed),
    )


def _classes(request: ImportRequest, n_classes: int, assumed: list[str]) -> tuple[ClassSpec, ...]:
    if request.classes is not None:
        classes = read_classes(request.classes)
        if len(classes) != n_classes:
            raise SpecError(
                f"--classes {request.classes} has {len(classes)} classes and the checkpoint {n_classes}; write one line for each, by id"
            )
        return classes
    if n_classes == len(VOC_NAMES):
        assumed.append("the 21 classes of PASCAL VOC, by their number alone")
        return voc_classes()
    assumed.append(f"names class 0 to class {n_classes - 1}; name them with --classes")
    return tuple(ClassSpec(name=f"class {index}", color=voc_color(index)) for index in range(n_classes))


def _provenance(request: ImportRequest, converted: Converted, assumed: list[str]) -> dict[str, Any]:
    return {
        "imported_from": request.file.name,
        "sha256": file_sha256(request.file),
        "layout": converted.layout.name,
        "assumed": list(assumed),
        "left_out": list(converted.left_out),
    }
