"""Which blocks are finished? An append-only file with one JSON line per block, durable before it counts.

The line is written after the block's chunks are durable, and names them with length and checksum: a chunk's presence alone proves nothing.
A line that a crash cut short is dropped when the journal is opened for writing; the block is then done again, which is always safe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from typing import TYPE_CHECKING, Any, Self

from pipeline.durable_file import sync_directory
from pipeline.errors import StoreError
from pipeline.receipt import ChunkReceipt
from workflows.events import BlockFailure, BlockReceipt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from workflows.events import BlockIndex, Outcome

FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the journal."""

    outcome: Outcome
    """What became of the block."""
    time_s: float
    """When, in seconds since 1970."""


class Journal:
    """The journal of one run, open for appending; its owner holds the lock."""

    def __init__(self, path: Path, *, run_id: str) -> None:
        self._path = path
        self._run_id = run_id
        try:
            _drop_torn_tail(path)
            self._file = path.open("ab")
            sync_directory(path.parent)
        except OSError as cause:
            raise StoreError(f"the journal {path} cannot be opened for writing: {cause}") from cause

    def append(self, outcome: Outcome) -> None:
        """Write one line and return when it is durable."""
        line = json.dumps(_to_json(outcome, run_id=self._run_id), separators=(",", ":"))
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as cause:
            raise StoreError(
                f"the journal {self._path} cannot be written: {cause}; free some space and run the same command again"
            ) from cause

    def close(self) -> None:
        """Close the file; a line that a full disk refused is offered to it once more, and does not count."""
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_entries(path: Path, *, run_id: str) -> Iterator[Entry]:
    """Yield the whole lines of a journal that belong to ``run_id``, oldest first; others, and a missing file, yield nothing."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            entry = _from_line(line, run_id=run_id)
            if entry is not None:
                yield entry


def latest(entries: Iterator[Entry]) -> dict[BlockIndex, Outcome]:
    """Return the last outcome of every block."""
    return {entry.outcome.block: entry.outcome for entry in entries}


def _to_json(outcome: Outcome, *, run_id: str) -> dict[str, Any]:
    state = outcome.state if isinstance(outcome, BlockReceipt) else "failed"
    fields = dataclasses.asdict(outcome)
    fields.pop("state", None)
    if isinstance(outcome, BlockReceipt):
        fields["chunks"] = [dataclasses.astuple(chunk) for chunk in outcome.chunks]
    return {"v": FORMAT, "run": run_id, "time_s": round(time.time(), 3), "state": state, **fields}


def _from_line(line: bytes, *, run_id: str) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        data = json.loads(line)
        if data.pop("v") != FORMAT or data.pop("run") != run_id:
            return None
        return Entry(time_s=data.pop("time_s"), outcome=_outcome(data))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _outcome(data: dict[str, Any]) -> Outcome:
    row, col = data.pop("block")
    state = data.pop("state")
    if state == "failed":
        return BlockFailure(block=(row, col), **data)
    if state not in ("done", "nodata"):
        raise ValueError(f"a block has the unknown state {state!r}")
    chunks = tuple(ChunkReceipt(key=key, n_bytes=n_bytes, crc32c=crc) for key, n_bytes, crc in data.pop("chunks"))
    counts = tuple(data.pop("class_counts"))
    return BlockReceipt(block=(row, col), state=state, chunks=chunks, class_counts=counts, **data)


def _drop_torn_tail(path: Path) -> None:
    """Cut off what follows the last newline, the trace of a crash in the middle of a write."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        tail = b""
        while end > 0 and b"\n" not in tail:
            start = max(0, end - 65536)
            file.seek(start)
            tail = file.read(end - start)
            if b"\n" in tail:
                file.truncate(start + tail.rindex(b"\n") + 1)
                break
            end = start
        else:
            file.truncate(0)
        os.fsync(file.fileno())
