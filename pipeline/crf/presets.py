"""Which energies were published, and how does a person change one? Presets by name, and settings written as KEY=VALUE."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from pipeline.crf.energy import CrfSpec, Matrix
from pipeline.errors import SpecError
from pipeline.network.keys import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """An energy with its source."""

    crf: CrfSpec
    """The energy."""
    source: str
    """Where its values come from, and what that source says of them."""


def _published(w1: float, theta_alpha: float, theta_beta: float, *, theta_gamma: float = 3.0) -> CrfSpec:
    return CrfSpec(
        w_appearance=w1, theta_alpha=theta_alpha, theta_beta=theta_beta, w_smoothness=3.0, theta_gamma=theta_gamma, n_steps=10
    )


DEFAULT_PRESET = "kazuto"

PRESETS: dict[str, Preset] = {
    "kazuto": Preset(
        crf=_published(4, 67, 3, theta_gamma=1),
        source="kazuto1011's DeepLab v2 for PyTorch, ResNet-101 on VOC 2012",
    ),
    "v1": Preset(
        crf=_published(4, 49, 5),
        source="the script of DeepLab v1's LargeFOV network on VOC 2012; the paper fixes w_smoothness 3, theta_gamma 3 and 10 steps, and "
        "searches the other three within w_appearance 5 to 10, theta_alpha 50 to 100, theta_beta 3 to 10",
    ),
    "v1-default": Preset(
        crf=_published(10, 60, 20),
        source="the default of dense_inference.cpp, the program that came with DeepLab v1, with what the paper fixes",
    ),
    "v2": Preset(
        crf=_published(4, 67, 3),
        source="DeepLab v2: the paper fixes w_smoothness 3, theta_gamma 3 and 10 steps; of the others it gives only what was searched, "
        "w_appearance 3 to 6, theta_alpha 30 to 100, theta_beta 3 to 6: the values here are kazuto1011's, which lie within",
    ),
}
"""Published energies by name. All of them were found on photographs of objects; none of them is for scenes from above."""

_OWN_OPTION = "backend"


def find_preset(name: str) -> Preset:
    """Return the preset of that name; SpecError where there is none."""
    if name not in PRESETS:
        raise SpecError(f"the CRF preset {name!r} was asked for; {suggest(name, PRESETS)} (or 'model': the model's own)")
    return PRESETS[name]


def parse_changes(pairs: Iterable[str], *, read_matrix: Callable[[str], Matrix]) -> dict[str, Any]:
    """Return what ``KEY=VALUE`` texts say, as values of `CrfSpec` fields.

    Parameters
    ----------
    pairs
        For example ``theta_alpha=50``, ``guide_bands=1,2`` or ``compatibility=costs.csv``.
    read_matrix
        Turns what stands for ``compatibility`` into a matrix.

    Raises
    ------
    SpecError
        A text is no pair, its key is unknown or given twice, or its value is of another kind.
    """
    types = get_type_hints(CrfSpec)
    known = [field.name for field in dataclasses.fields(CrfSpec) if field.name != _OWN_OPTION]
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not text:
            raise SpecError(f"the CRF setting {pair!r} was given; write it as KEY=VALUE, for example theta_alpha=50")
        if key == _OWN_OPTION:
            raise SpecError(f"the CRF setting {pair!r} was given; the backend is an option of its own: --crf-backend {text}")
        if key not in known:
            raise SpecError(f"the CRF has no setting {key!r}; {suggest(key, known)}")
        if key in changes:
            raise SpecError(f"the CRF setting {key} was given twice; give it once")
        changes[key] = read_matrix(text) if key == "compatibility" else _value(key, text, types[key])
    return changes


def _value(key: str, text: str, kind: Any) -> Any:
    """Return ``text`` as a value of the field ``key``."""
    try:
        if key == "guide_bands":
            return None if text == "all" else tuple(int(part) for part in text.split(","))
        return kind(text)
    except ValueError:
        wanted = {"guide_bands": "numbers with commas between, or 'all'"}.get(key, {int: "a whole number"}.get(kind, "a number"))
        raise SpecError(f"the CRF setting {key}={text} was given; expected {wanted}: correct it") from None
