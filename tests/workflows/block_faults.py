"""A stand-in for the work on one block that fails as a folder on disk says; worker processes import it by name.

``FOLDER/calls/ROW-COL`` has one byte per call, counted over all processes; ``FOLDER/faults.json`` says what goes wrong.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from pipeline.errors import SourceError, StoreError
from workflows.events import BlockReceipt


def faulty_block(job, index, *, attempt: int = 1) -> BlockReceipt:
    """Count the call, then fail, die or return a receipt."""
    folder = Path(job.out)
    with (folder / "calls" / f"{index[0]}-{index[1]}").open("ab", buffering=0) as counter:
        counter.write(b".")
        n_calls = counter.tell()
    kind, until = json.loads((folder / "faults.json").read_text()).get(f"{index[0]}-{index[1]}", ("none", 0))
    if n_calls <= until:
        _fail(kind, index)
    return BlockReceipt(block=index, state="nodata", n_pixels=1, seconds=0.0, device="cpu", host="here", attempt=attempt)


def faulty_task(_digest: str, index: tuple[int, int], attempt: int) -> BlockReceipt:
    """Stand in for the task of the Dask executor."""
    from workflows import dask_executor

    return faulty_block(dask_executor._jobs[_digest], index, attempt=attempt)


def _fail(kind: str, index: tuple[int, int]) -> None:
    if kind == "source":
        raise SourceError(f"the scene is damaged at\n  {index}")
    if kind == "store":
        raise StoreError("cannot write: No space left on device")
    if kind == "odd":
        raise UnpicklableError(index)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(1e6)


class UnpicklableError(Exception):
    """An error as C libraries raise them: it cannot cross processes."""

    def __init__(self, index: tuple[int, int]) -> None:
        super().__init__(f"odd {index}")
        self.handle = lambda: None

    def __reduce__(self) -> str:
        raise TypeError("cannot pickle")
