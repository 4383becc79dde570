"""Which feature extractors are there? Every module of this folder that has a table ``BACKBONES`` adds its entries.

A new backbone is one new file here: a module whose ``BACKBONES`` maps names to `Backbone` entries.
"""

from __future__ import annotations

import pkgutil
import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.errors import SpecError
from pipeline.network.kept import kept

if TYPE_CHECKING:
    from pipeline.network.features import Backbone


@cache
def known_backbones() -> dict[str, Backbone]:
    """Return all backbones by name, sorted."""
    found: dict[str, Backbone] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= getattr(import_module(f"{__name__}.{module.name}"), "BACKBONES", {})
    return dict(sorted(found.items()))


def backbone_entry(name: str) -> Backbone:
    """Return the backbone of that name; SpecError listing all where there is none."""
    backbone_knobs(name)
    return known_backbones()[name]


def backbone_knobs(name: str) -> frozenset[str]:
    """Return which fields of NetworkSpec the backbone of that name heeds; SpecError listing all where there is none.

    The modules of this folder import torch, which who only describes a network need not have: what they say is kept.
    """
    known = _all_knobs() if "torch" in sys.modules else _kept_knobs()
    if name not in known:
        raise SpecError(f"backbone is {name!r}; choose one of {', '.join(known)}")
    return frozenset(known[name])


def _all_knobs() -> dict[str, list[str]]:
    return {name: sorted(entry.knobs) for name, entry in known_backbones().items()}


@cache
def _kept_knobs() -> dict[str, list[str]]:
    found: dict[str, list[str]] = kept("knobs of the backbones", None, _all_knobs)
    return found
