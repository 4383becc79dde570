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
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from pipeline.durable_file import sync_directory
from pipeline.errors import StoreError
from pipeline.receipt import ChunkReceipt, crc32c
from workflows.events import BlockFailure, BlockReceipt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from workflows.events import BlockIndex, Outcome, Place

FORMAT = 1
_READ_BYTES = 1 << 15
"""Lines are parsed together, as many as fill this; with more of them, the garbage collector takes as long as the parser."""
_SEAL = b',"crc":'
_HEAD = ("v", "run", "time_s")
_RECEIPT = ("state", *(field.name for field in dataclasses.fields(BlockReceipt) if field.name != "state"))
_ALLOWED = frozenset((*_HEAD, *_RECEIPT))
_USUAL = _ALLOWED - {"unreadable"}
"""Fields of a line with a receipt; ``unreadable`` only stands where there is something to say."""
_NEEDED = _USUAL - {"attempt", "stage_s"}
"""The first versions wrote no others."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the journal."""

    outcome: Outcome
    """What became of the block."""
    time_s: float
    """When, in seconds since 1970."""
    start: int
    """Where the line starts in the file, bytes."""


class Journal:
    """The journal of one run, open for appending; its owner holds the lock."""

    def __init__(self, path: Path, *, run_id: str) -> None:
        self._path = path
        self._run_id = run_id
        try:
            _drop_torn_tail(path)
            self._file = path.open("ab", buffering=0)
            sync_directory(path.parent)
        except OSError as cause:
            raise StoreError(f"the journal {path} cannot be opened for writing: {cause}") from cause

    def append(self, *outcomes: Outcome) -> None:
        """Write one line per outcome and return when all are durable: what ended together is synced together."""
        lines = (_seal(json.dumps(_to_json(outcome, run_id=self._run_id), separators=(",", ":"))) for outcome in outcomes)
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._write(b"".join(lines))
            os.fsync(self._file.fileno())
        except OSError as cause:
            self._take_back(end)
            raise StoreError(
                f"the journal {self._path} cannot be written: {cause}; free some space and run the same command again"
            ) from cause

    def close(self) -> None:
        """Close the file; nothing waits to be written."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _take_back(self, end: int) -> None:
        """Cut off lines that may not be durable: after an fsync that failed, the next one says nothing about them."""
        with contextlib.suppress(OSError):
            self._file.truncate(end)
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_entries(path: Path, *, run_id: str) -> Iterator[Entry]:
    """Yield the whole lines of a journal that belong to ``run_id``, oldest first; others, and a missing file, yield nothing."""
    for start, fields in read_values(path):
        entry = entry_of(fields, run_id=run_id, start=start)
        if entry is not None:
            yield entry


def read_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield where each line starts, bytes, and the JSON value that it is; None for one that is none, or that was cut short."""
    if not path.exists():
        return
    start = 0
    with open_to_read(path) as file:
        while lines := file.readlines(_READ_BYTES):
            for line, value in zip(lines, _parse(lines), strict=True):
                yield start, _unsealed(line, value)
                start += len(line)


@contextlib.contextmanager
def open_to_read(path: Path) -> Iterator[BinaryIO]:
    """Open a journal; StoreError where the disk does not give it back."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as cause:
        if isinstance(cause, StoreError):
            raise
        raise StoreError(f"the journal {path} cannot be read: {cause}; check the disk, and run the same command again") from cause


def read_entry_at(path: Path, start: int, *, run_id: str) -> Entry | None:
    """Return the entry of the line that starts there; None where it is cut short, of another run, or cannot be read."""
    with open_to_read(path) as file:
        file.seek(start)
        return parse_line(file.readline(), run_id=run_id, start=start)


def parse_line(line: bytes, *, run_id: str, start: int = 0) -> Entry | None:
    """Return what a line of a journal says; None where it is cut short, of another run, or cannot be read."""
    return entry_of(_unsealed(line, _parse_one(line)), run_id=run_id, start=start)


def entry_of(fields: Any, *, run_id: str, start: int = 0) -> Entry | None:
    """Return what the value of a line says, and use the value up; None where it is of another run, or nothing that was written here."""
    try:
        if fields.pop("v") != FORMAT or fields.pop("run") != run_id:
            return None
        return Entry(time_s=fields.pop("time_s"), outcome=_outcome(fields), start=start)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def is_receipt(value: Any, *, run_id: str) -> bool:
    """Tell whether ``entry_of`` would make a receipt of a value, by its names alone: objects take as long as parsing."""
    return (
        isinstance(value, dict)
        and (value.keys() == _USUAL or _NEEDED <= value.keys() <= _ALLOWED)
        and value["v"] == FORMAT
        and value["run"] == run_id
        and value["state"] in {"done", "nodata"}
        and ("unreadable" not in value or _are_places(value["unreadable"]))
    )


def latest(entries: Iterator[Entry]) -> dict[BlockIndex, Outcome]:
    """Return the last outcome of every block."""
    return {entry.outcome.block: entry.outcome for entry in entries}


def _seal(text: str) -> bytes:
    """Return a line of a journal with the checksum of all that comes before it: a flipped bit could make another block done."""
    body = text[:-1].encode()
    return body + _SEAL + str(crc32c(body)).encode() + b"}\n"


def _unsealed(line: bytes, value: Any) -> Any:
    """Return the value of a line without its checksum; None where that is wrong. The first versions wrote none."""
    if not isinstance(value, dict) or "crc" not in value:
        return value
    return value if crc32c(line.rpartition(_SEAL)[0]) == value.pop("crc") else None


def _to_json(outcome: Outcome, *, run_id: str) -> dict[str, Any]:
    """Return the fields of a line. Listed by name: `dataclasses.asdict` takes five times as long."""
    head = {"v": FORMAT, "run": run_id, "time_s": round(time.time(), 3)}
    if isinstance(outcome, BlockReceipt):
        fields = {name: getattr(outcome, name) for name in _RECEIPT if name != "unreadable" or outcome.unreadable}
        return {**head, **fields, "chunks": [(chunk.key, chunk.n_bytes, chunk.crc32c) for chunk in outcome.chunks]}
    return {**head, "state": "failed", **dataclasses.asdict(outcome)}


def _parse(lines: list[bytes]) -> list[Any]:
    """Return one value per line, None for what is no JSON; all in one call unless one of them is damaged, which takes 2/3 of the time."""
    try:
        values: list[Any] = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        return [_parse_one(line) for line in lines]
    whole = len(values) == len(lines) and lines[-1].endswith(b"\n")
    return values if whole else [_parse_one(line) for line in lines]


def _parse_one(line: bytes) -> Any:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
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
    places = places_of(data.pop("unreadable", ()))
    return BlockReceipt(block=(row, col), state=state, chunks=chunks, class_counts=counts, unreadable=places, **data)


def places_of(value: Any) -> tuple[Place, ...]:
    """Return what a line says of unreadable places; ValueError where it makes no sense."""
    if not _are_places(value):
        raise ValueError(f"{value!r} is no list of places")
    return tuple((row, col, height, width) for row, col, height, width in value)


def _are_places(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(place, list) and [type(number) for number in place] == [int] * 4 and min(place) >= 0 < min(place[2:])
        for place in value
    )


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
