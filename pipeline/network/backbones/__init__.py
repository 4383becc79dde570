"""Which feature extractors are there? Every module of this folder that has a table ``BACKBONES`` adds its entries.

A new backbone is one new file here: a module whose ``BACKBONES`` maps names to `Backbone` entries.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.errors import SpecError

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
    if name not in known_backbones():
        raise SpecError(f"backbone is {name!r}; choose one of {', '.join(known_backbones())}")
    return known_backbones()[name]
