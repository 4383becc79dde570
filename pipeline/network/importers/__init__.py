"""Which layouts of public checkpoints can be imported? Every module of this folder that has a ``LAYOUT`` adds one."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.network.importers.layout import Layout


@cache
def known_layouts() -> tuple[Layout, ...]:
    """Return all layouts, by name."""
    modules = (import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    found = [module.LAYOUT for module in modules if hasattr(module, "LAYOUT")]
    return tuple(sorted(found, key=lambda layout: layout.name))
