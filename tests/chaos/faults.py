"""How is a run told to go wrong? A folder with a list of faults, and an environment that makes worker processes heed it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

ALWAYS = 10**6
_HOOKS = Path(__file__).with_name("hooks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is to go wrong, and what was called."""

    folder: Path
    """Where the worker processes look."""

    @classmethod
    def make(cls, folder: Path, kinds: dict[tuple[int, int], tuple[str, int]] | None = None) -> Faults:
        """Make the folder; ``kinds``: by block, what it does in place of its work, and until which call."""
        (folder / "calls").mkdir(parents=True)
        named = {f"{row}-{col}": fault for (row, col), fault in (kinds or {}).items()}
        (folder / "faults.json").write_text(json.dumps(named))
        return cls(folder=folder)

    def environment(self, *, memory_bytes: int | None = None) -> dict[str, str]:
        """Return the environment of a run that heeds the faults."""
        path = os.pathsep.join([str(_HOOKS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep)
        memory = {} if memory_bytes is None else {"CHAOS_MEMORY": str(memory_bytes)}
        return {**os.environ, "PYTHONPATH": path, "CHAOS_FOLDER": str(self.folder), **memory}

    def calls(self) -> dict[tuple[int, int], int]:
        """Return how often every block was begun."""
        found = {}
        for path in (self.folder / "calls").iterdir():
            row, col = path.name.split("-")
            found[int(row), int(col)] = path.stat().st_size
        return found
