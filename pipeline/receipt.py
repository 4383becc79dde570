"""What was written of a chunk, and is it still so? A receipt says it, and a file is checked against it.

A receipt is taken from the bytes that went to the disk. It travels from the worker to the journal, and a
later run compares the file with it: the length by default, the checksum on demand. That a file exists proves
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import google_crc32c

if TYPE_CHECKING:
    from pathlib import Path

CheckLevel = Literal["length", "crc"]

_READ_BYTES = 1 << 20
"""Shards may be larger than memory allows to hold; checksums are taken in pieces of this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkReceipt:
    """One chunk file (one shard file, where the store has shards) as it was stored."""

    key: str
    """Path of the file relative to the store's root, with slashes, e.g. ``0/labels/c/0/1``."""
    n_bytes: int
    """Length of the file, bytes."""
    crc32c: int
    """CRC-32C of the file, 0 to 2**32 - 1."""


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes, 0 to 2**32 - 1."""
    return int(google_crc32c.value(data))


def check_receipt(path: Path, receipt: ChunkReceipt, *, level: CheckLevel = "length") -> str | None:
    """Return None where the file in the store at ``path`` is as the receipt says, else the reason.

    Parameters
    ----------
    path
        Root of the store.
    receipt
        What ``write_block`` returned for the chunk.
    level
        ``length`` looks at the directory only; ``crc`` reads every byte.
    """
    file = path / receipt.key
    try:
        n_bytes = file.stat().st_size
        if n_bytes != receipt.n_bytes:
            return f"length: {receipt.key} has {n_bytes} bytes, {receipt.n_bytes} were written"
        if level == "crc" and (found := _crc32c_of(file)) != receipt.crc32c:
            return f"checksum: {receipt.key} has crc32c {found:08x}, {receipt.crc32c:08x} was written"
    except (FileNotFoundError, NotADirectoryError):
        return f"missing: {receipt.key} is not there"
    except OSError as error:
        return f"unreadable: {receipt.key}: {error.strerror}"
    return None


def _crc32c_of(file: Path) -> int:
    checksum = 0
    with file.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            checksum = google_crc32c.extend(checksum, piece)
    return int(checksum)
