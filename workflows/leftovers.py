"""Which files of an output does nobody speak for? What killed writers left, what lies where nothing may lie, what others put there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.chunk_files import first_pixel
from pipeline.durable_file import PARTIAL_SUFFIX
from pipeline.errors import StoreError
from workflows.journal_survey import DONE, LEFT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.store_layout import StoreLayout
    from workflows.events import BlockIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """Files that no receipt names, by paths relative to the store's root."""

    strays: tuple[tuple[str, BlockIndex], ...]
    """Files with pixels of blocks that have none, because they are nodata or failed; readers would take them for results."""
    n_unfinished: int
    """Files with pixels of blocks that are left, of writers that were killed or are at work; the blocks will write them again."""
    partials: tuple[str, ...]
    """Files that were never finished."""
    foreign: tuple[str, ...]
    """What atrous did not write; a folder counts as one."""


def find_leftovers(
    out: Path, layout: StoreLayout, states: NDArray[np.uint8], *, block_px: int, known: frozenset[str]
) -> Leftovers:
    """Look at the name of every file in the store at ``out``.

    Parameters
    ----------
    out
        Root of the store.
    layout
        What it should hold.
    states
        What the journal says of every block, (rows, columns) of blocks.
    block_px
        Side of a block, px.
    known
        The files of metadata and coordinates.
    """
    strays: list[tuple[str, BlockIndex]] = []
    partials: list[str] = []
    foreign: list[str] = []
    n_unfinished = 0
    for key in _walk(out):
        if key in known:
            continue
        if (pixel := first_pixel(layout, key)) is not None:
            block = pixel[0] // block_px, pixel[1] // block_px
            if states[block] == LEFT:
                n_unfinished += 1
            elif states[block] != DONE:
                strays.append((key, block))
        else:
            (partials if key.endswith(PARTIAL_SUFFIX) else foreign).append(key)
    return Leftovers(
        strays=tuple(sorted(strays)),
        n_unfinished=n_unfinished,
        partials=tuple(sorted(partials)),
        foreign=tuple(sorted(foreign)),
    )


def _walk(root: Path) -> Iterator[str]:
    """Yield the files of the full resolution, and whatever else lies at the root."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    key = f"{folder}/{entry.name}" if folder else entry.name
                    if (folder or entry.name == "0") and entry.is_dir(follow_symlinks=False):
                        folders.append(key)
                    else:
                        yield key
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreError(f"{root / folder} cannot be listed: {error.strerror}; check its permissions") from error
