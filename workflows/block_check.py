"""Is one finished block as it was written? Its files against its receipt, its pixels against their count.

Right checksums say that the bytes are those that a worker wrote. That the pixels can be read, and are as many of each class as the worker
counted before it wrote them, is said by decoding alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline.chunk_files import name_file, owned_files
from pipeline.errors import StoreError
from pipeline.store import check_receipt
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.store_layout import StoreLayout
    from workflows.events import BlockIndex, BlockReceipt

    Reader = Callable[[Window], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One file that is not as it was written."""

    kind: str
    """``missing``, ``length``, ``checksum``, ``unreadable``, ``decode``, ``pixels``, ``receipt``, ``stray``, ``metadata`` or
    ``coordinates``."""
    key: str
    """Path of the file relative to the store's root."""
    block: BlockIndex | None
    """The block that owns it; None of metadata."""
    reason: str
    """What is wrong."""

    @classmethod
    def of(cls, reason: str, *, key: str, block: BlockIndex | None = None) -> Self:
        """Build it from a reason that begins with its kind and a colon."""
        kind, _, text = reason.partition(": ")
        return cls(kind=kind, key=key, block=block, reason=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCheck:
    """What was found of one block."""

    n_files: int
    """Files looked at."""
    n_bytes: int
    """Their length, bytes, as they were written."""
    damages: tuple[Damage, ...]
    """What is wrong; empty where the block is sound."""


def check_block(
    out: Path, layout: StoreLayout, window: Window, receipt: BlockReceipt, *, readers: Mapping[str, Reader]
) -> BlockCheck:
    """Check the files of one block by their checksums, and decode them where those are right.

    Parameters
    ----------
    out
        Root of the store.
    layout
        What the store should hold.
    window
        The block's write window.
    receipt
        What the journal says of the block.
    readers
        What reads the arrays that are to be decoded, by name.
    """
    damages = _foreign_names(receipt, owned_files(layout, window))
    if not damages:
        reasons = ((chunk.key, check_receipt(out, chunk, level="crc")) for chunk in receipt.chunks)
        damages = [Damage.of(reason, key=key, block=receipt.block) for key, reason in reasons if reason is not None]
    if not damages:
        damages = list(_decode(layout, window, receipt, readers))
    return BlockCheck(n_files=len(receipt.chunks), n_bytes=sum(chunk.n_bytes for chunk in receipt.chunks), damages=tuple(damages))


def _foreign_names(receipt: BlockReceipt, owned: list[str]) -> list[Damage]:
    """Tell where the journal's line names other files than the block owns: the line itself is damaged then."""
    named = [str(chunk.key) for chunk in receipt.chunks]
    if sorted(named) == owned:
        return []
    reason = (
        f"receipt: the journal names {len(named)} files of block {receipt.block}, which owns {len(owned)}: {', '.join(owned)}"
    )
    return [Damage.of(reason, key=key, block=receipt.block) for key in named or [""]]


def _decode(layout: StoreLayout, window: Window, receipt: BlockReceipt, readers: Mapping[str, Reader]) -> Iterator[Damage]:
    """Read every chunk, one at a time, and compare the count of labels with that of the worker."""
    counts, whole = np.zeros(256, np.int64), "labels" in readers
    for array, read in readers.items():
        for chunk in _chunks(window, layout.chunk):
            try:
                pixels = read(chunk)
            except StoreError as error:
                key = name_file(layout, array, row=chunk.row_off, col=chunk.col_off)
                yield Damage.of(f"decode: {error.__cause__ or error}", key=key, block=receipt.block)
                whole = whole and array != "labels"
                continue
            if array == "labels":
                counts += np.bincount(pixels.reshape(-1), minlength=256)
    found = tuple(counts[: len(layout.classes)].tolist())
    if whole and found != receipt.class_counts:
        key = name_file(layout, "labels", row=window.row_off, col=window.col_off)
        reason = f"pixels: the block has {found} pixels of each class, {receipt.class_counts} were written"
        yield Damage.of(reason, key=key, block=receipt.block)


def _chunks(window: Window, side: int) -> Iterator[Window]:
    for row in range(window.row_off, window.row_end, side):
        for col in range(window.col_off, window.col_end, side):
            yield Window.from_bounds(rows=(row, min(row + side, window.row_end)), cols=(col, min(col + side, window.col_end)))
