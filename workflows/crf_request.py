"""Which CRF does a person mean? A preset (by default the model's own), with settings changed one by one, on a backend."""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.crf.backends import resolve
from pipeline.crf.energy import CrfSpec
from pipeline.crf.presets import DEFAULT_PRESET, PRESETS, find_preset, parse_changes
from pipeline.engine.choose import choose_device
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import SourceError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.crf.backends import BackendChoice
    from pipeline.crf.energy import BackendName, Matrix
    from pipeline.engine.protocol import Device
    from pipeline.network.spec import ModelSpec

MODEL_PRESET = "model"
"""Stands for the CRF that the model brings along."""
_TILES_PX: dict[BackendName, tuple[int, ...]] = {"cpu": (2048, 1024), "torch": (1024,), "pydensecrf": (1024,)}
"""Sides of the tiles that are chosen where none is asked for, px, the best first (ADR 20). The other backends hold two to four times as
much for a pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrfRequest:
    """What a person asks for; `choose` makes a `CrfSpec` of it, for one model."""

    preset: str | None = None
    """A name of ``PRESETS``, or ``model``; None: the model's own CRF where it has one, else ``kazuto``."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of `CrfSpec` that are to differ from the preset."""
    backend: BackendName = "cpu"
    """What minimises, whatever the preset was made with."""
    tile_px: int | None = None
    """Side of the tiles where ``changes`` has none, px: that of the run that goes on; None: chosen."""


def parse_request(
    pairs: Iterable[str], *, preset: str | None = None, backend: BackendChoice = "auto", device: Device = "auto"
) -> CrfRequest:
    """Return a request whose changes are written as KEY=VALUE; a name of no preset is refused here already.

    ``device`` is that of the run: ``auto`` is the backend that is made for it.
    """
    if preset is not None and preset != MODEL_PRESET:
        find_preset(preset)
    name = resolve(backend, device=choose_device(EngineSpec(device=device)))
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


def as_begun(request: CrfRequest | CrfSpec, begun: CrfSpec | None) -> CrfRequest | CrfSpec:
    """Return the request with the tiles of the run that it goes on with, where it leaves them open."""
    if not isinstance(request, CrfRequest) or begun is None:
        return request
    return dataclasses.replace(request, tile_px=begun.tile_px)


def tilings(request: CrfRequest | CrfSpec, crf: CrfSpec, *, block_px: int | None = None) -> tuple[CrfSpec, ...]:
    """Return ``crf``, which ``request`` became, with each side of its tiles that may be chosen, the best first.

    Larger tiles have less halo for what they keep, and fewer edges on which labels are a little off; the last of several needs the least
    memory. A side that somebody named is the only one, also where a model names it.

    Parameters
    ----------
    request, crf
        What was asked for, and what it means.
    block_px
        Side of the blocks where it is fixed, px: tiles that several blocks share would be refined by each of them.
    """
    if not isinstance(request, CrfRequest) or "tile_px" in request.changes or crf.tile_px != CrfSpec().tile_px:
        return (crf,)
    if request.tile_px is not None:
        return (dataclasses.replace(crf, tile_px=request.tile_px),)
    sides = _TILES_PX[crf.backend]
    whole = [side for side in sides if block_px is None or block_px % side == 0]
    return tuple(dataclasses.replace(crf, tile_px=side) for side in whole or sides[-1:])


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
