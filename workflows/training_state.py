"""How does a training go on after a kill as if nothing had happened? Everything that the next step depends on, in one file.

Windows, dropout and all else that is random follow from the seed and the number of the step (`workflows.window_sampler`), so the state is
the weights, their average, what the optimizer remembers, and what validation said so far. It is written under a temporary name and
renamed, so a full disk or a kill leaves the one before.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch

from pipeline.durable_file import replace_durably
from pipeline.errors import SourceError, StoreError, StoreMismatchError
from workflows.run_state import changed

if TYPE_CHECKING:
    from pathlib import Path

STATE_FILE = "state.pt"
"""Within the output folder."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingState:
    """A training between two steps."""

    trains_for: dict[str, Any]
    """The settings that decide the weights."""
    data: dict[str, Any]
    """What was seen of the scenes: sizes and labelled pixels."""
    step: int
    """Updates made."""
    phase: int
    """Index of the phase of the last of them."""
    network: dict[str, Any]
    """The weights by name."""
    average: dict[str, Any] | None
    """Their moving average by name; None: none is kept."""
    optimizer: dict[str, Any]
    """Its momenta and rates."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The factor on gradients in float16."""
    best_step: int | None = None
    """Updates after which validation was best; None: not measured yet."""
    best_score: float | None = None
    """Its mean IoU then."""
    n_worse: int = 0
    """Measurements since."""
    ended_early: bool = False
    """Whether the schedule was cut short, since nothing became better."""
    rows: list[tuple[int, str, str, str, str, float]] = field(default_factory=list)
    """The table of what was measured (`workflows.training_log`)."""


def write_state(folder: Path, state: TrainingState) -> None:
    """Write ``state`` to ``folder``; StoreError where that fails, and what was there stays."""
    buffer = io.BytesIO()
    torch.save({field.name: getattr(state, field.name) for field in fields(state)}, buffer)
    try:
        replace_durably(folder / STATE_FILE, buffer.getvalue())
    except OSError as error:
        raise StoreError(
            f"the state of the training cannot be written to {folder / STATE_FILE} ({error}); the one before is intact: make room, then go "
            "on with --resume"
        ) from error


def read_state(folder: Path) -> TrainingState | None:
    """Return the state in ``folder``, or None where there is none; SourceError where it is damaged."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        return TrainingState(**values)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, TypeError, ValueError, KeyError) as error:
        raise SourceError(
            f"{path} cannot be read as the state of a training ({error}); remove it and begin again, or give another output"
        ) from error


def check_goes_on(state: TrainingState, *, trains_for: dict[str, Any], data: dict[str, Any], folder: Path) -> None:
    """Raise StoreMismatchError where the settings or the data of ``state`` are not those of now, naming each."""
    found = changed(_flat(state.trains_for), _flat(trains_for)) | changed(_flat(state.data), _flat(data))
    if found:
        told = "; ".join(f"{name}: was {old!r}, is {new!r}" for name, (old, new) in found.items())
        raise StoreMismatchError(
            f"the training in {folder} was begun with other settings or data ({told}); put them back, give another output, or begin anew "
            "with --overwrite"
        )


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Return nested dictionaries and lists as one level with dotted names."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    flat: dict[str, Any] = {}
    for key, value in items:
        here = f"{name}.{key}" if name else str(key)
        flat |= _flat(value, here) if isinstance(value, dict | list | tuple) else {here: value}
    return flat
