"""Which CRF does a person mean? A preset (by default the model's own), with settings changed one by one, on a backend."""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.crf.backends import resolve
from pipeline.crf.presets import DEFAULT_PRESET, PRESETS, find_preset, parse_changes
from pipeline.engine.protocol import EngineSpec
from pipeline.engine.torch_engine import choose_device
from pipeline.errors import SourceError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.crf.backends import BackendChoice
    from pipeline.crf.energy import BackendName, CrfSpec, Matrix
    from pipeline.engine.protocol import Device
    from pipeline.network.spec import ModelSpec

MODEL_PRESET = "model"
"""Stands for the CRF that the model brings along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrfRequest:
    """What a person asks for; `choose` makes a `CrfSpec` of it, for one model."""

    preset: str | None = None
    """A name of ``PRESETS``, or ``model``; None: the model's own CRF where it has one, else ``kazuto``."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of `CrfSpec` that are to differ from the preset."""
    backend: BackendName = "cpu"
    """What minimises, whatever the preset was made with."""


def parse_request(
    pairs: Iterable[str], *, preset: str | None = None, backend: BackendChoice = "auto", device: Device = "auto"
) -> CrfRequest:
    """Return a request whose changes are written as KEY=VALUE; a name of no preset is refused here already.

    ``device`` is that of the run: ``auto`` is the backend that is made for it.
    """
    if preset is not None and preset != MODEL_PRESET:
        find_preset(preset)
    name = resolve(backend, device=str(choose_device(EngineSpec(device=device))))
    return CrfRequest(preset=preset, changes=parse_changes(pairs, read_matrix=read_matrix), backend=name)


def choose(request: CrfRequest | CrfSpec, model: ModelSpec) -> tuple[CrfSpec, str]:
    """Return the CRF that is meant for ``model``, and where its values come from, in words.

    Raises
    ------
    SpecError
        The preset is unknown or the model has none, or settings do not fit each other or the model.
    """
    if not isinstance(request, CrfRequest):
        request.check_fits(n_classes=len(model.classes), n_bands=len(model.bands))
        return request, "given value by value"
    base, origin = _base(request, model)
    crf = dataclasses.replace(base, **{**request.changes, "backend": request.backend})
    crf.check_fits(n_classes=len(model.classes), n_bands=len(model.bands))
    changed = ", ".join(sorted(request.changes))
    return crf, f"{origin}, with other {changed}" if changed else origin


def _base(request: CrfRequest, model: ModelSpec) -> tuple[CrfSpec, str]:
    if model.crf is not None and request.preset in (None, MODEL_PRESET):
        return model.crf, "the model's own"
    if request.preset == MODEL_PRESET:
        raise SpecError(
            f"--crf-preset {MODEL_PRESET} was asked for; the model {model.name} brings no CRF: name one of {', '.join(PRESETS)}, "
            "or search one"
        )
    name = request.preset or DEFAULT_PRESET
    return find_preset(name).crf, f"preset {name}"


def read_matrix(path: str) -> Matrix:
    """Read a matrix from a CSV file (a row a line) or a JSON file (a list of rows)."""
    file = Path(path)
    if file.suffix.lower() not in (".csv", ".json"):
        raise SpecError(f"compatibility={path} was given; expected a .csv or .json file with a row of costs for each class")
    try:
        text = file.read_text()
        rows = json.loads(text) if file.suffix.lower() == ".json" else [row for row in csv.reader(text.splitlines()) if row]
        return tuple(tuple(float(cost) for cost in row) for row in rows)
    except OSError as error:
        raise SourceError(
            f"the compatibility matrix {path} cannot be read ({error.strerror or error}); check the path"
        ) from error
    except (ValueError, TypeError) as error:
        raise SpecError(
            f"{path} is no matrix ({error}); expected numbers only, a row for each class: lines with commas (.csv) or a list of lists "
            "(.json)"
        ) from error
