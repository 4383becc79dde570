"""How does a block go wrong in a real worker process? Python imports this module at its start, where this folder is on PYTHONPATH.

It wraps ``process_block``: ``$CHAOS_FOLDER/calls/ROW-COL`` gets a byte per call, and ``$CHAOS_FOLDER/faults.json`` says which block does
what in place of its work: ``{"ROW-COL": [kind, until which call]}``. ``$CHAOS_MEMORY`` is what the machine is to have, in bytes.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def fail(kind: str) -> None:
    """Do what a broken library, a broken scene or a broken machine does."""
    if kind == "raises":
        raise RuntimeError("this block always raises")
    if kind == "kills itself":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "segfaults":
        ctypes.string_at(0)
    if kind == "hangs":
        time.sleep(1e6)
    if kind == "hangs and holds the GIL":
        ctypes.PyDLL(None).pause()
    if kind == "leaks memory":
        leak = []
        while True:
            leak.append(bytearray(b"x") * 2**26)
            time.sleep(0.02)
    if kind == "ends the interpreter":
        os._exit(0)


def wrap_worker(module: ModuleType) -> None:
    """Count the calls of a block, and let it fail as it is told."""
    work: Callable[..., Any] = module.process_block
    folder = Path(os.environ["CHAOS_FOLDER"])

    def process_block(job: object, index: tuple[int, int], *, attempt: int = 1) -> object:
        name = f"{index[0]}-{index[1]}"
        with (folder / "calls" / name).open("ab", buffering=0) as counter:
            counter.write(b".")
            n_calls = counter.tell()
        kind, until = json.loads((folder / "faults.json").read_text()).get(name, ("", 0))
        if n_calls <= until:
            fail(kind)
        return work(job, index, attempt=attempt)

    module.process_block = process_block


def wrap_cluster(module: ModuleType) -> None:
    """Make the machine smaller, as the limit of a container would."""
    if "CHAOS_MEMORY" in os.environ:
        module.MEMORY_LIMIT = int(os.environ["CHAOS_MEMORY"])


class Hook(importlib.abc.MetaPathFinder):
    """Wraps two modules when they are imported."""

    def __init__(self) -> None:
        self.wrappers = {"workflows.worker": wrap_worker, "workflows.cluster": wrap_cluster}

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Find a module as the others do, and wrap it after its code has run."""
        wrap = self.wrappers.pop(name, None)
        found = None if wrap is None else importlib.util.find_spec(name)
        if found is None or found.loader is None or wrap is None:
            return None
        run = found.loader.exec_module

        def run_and_wrap(module: ModuleType) -> None:
            run(module)
            wrap(module)

        found.loader.exec_module = run_and_wrap  # type: ignore[method-assign]
        return found


if "CHAOS_FOLDER" in os.environ:
    sys.meta_path.insert(0, Hook())
