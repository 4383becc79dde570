"""Where does what took long to work out stay for the next process? In ``$XDG_CACHE_HOME/atrous``, which may be removed at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Return the folder of one kind of things that are kept, made where it is missing; None where it cannot be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atrous" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder
