"""What happens to blocks, as typed records that progress bars and tests listen to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipeline.receipt import ChunkReceipt

BlockIndex = tuple[int, int]
"""(row, column) of a block."""


Place = tuple[int, int, int, int]
"""(first row, first column, height, width) in the scene, px."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReceipt:
    """A block whose bytes are durable, or one that holds nodata only and has none."""

    block: BlockIndex
    """Which block."""
    state: Literal["done", "nodata"]
    """``nodata``: nothing was written, because the block holds none but nodata pixels."""
    chunks: tuple[ChunkReceipt, ...] = ()
    """The files written, with length and checksum."""
    class_counts: tuple[int, ...] = ()
    """Pixels per class id in the block."""
    n_pixels: int
    """Pixels of the block's write window, nodata included."""
    seconds: float
    """Wall time of the block, s."""
    device: str
    """Where the network ran."""
    host: str
    """The machine that did it."""
    attempt: int = 1
    """1 for the first try."""
    stage_s: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage (read, network, crf, label, write, wait), s."""
    unreadable: tuple[Place, ...] = ()
    """Parts of the write window that the scene did not give, and that are nodata for that reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFailure:
    """A block that failed on every try."""

    block: BlockIndex
    """Which block."""
    error: str
    """The last error, one line."""
    attempts: int
    """How often it was tried."""
    fatal: bool = False
    """True where no other block could succeed either (a full disk): the run stops."""


Outcome = BlockReceipt | BlockFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The plan is made and the lock is held."""

    n_blocks: int
    """All blocks of the job."""
    n_finished: int
    """Blocks that an earlier run finished."""
    pixels_left: int
    """Pixels of the blocks that are left."""
    n_workers: int
    """Processes that work."""
    dashboard: str | None
    """Address of the Dask dashboard."""
    engine: str = ""
    """What runs the network; empty where it is not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """A scene without random access is being copied to a tiled scratch file."""

    done: int
    """Rows copied."""
    total: int
    """Rows in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """The mean features of the scene are being measured, for an image-level branch that averages over it."""

    done: int
    """Network windows looked at."""
    total: int
    """Windows in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something the user should read once."""

    text: str
    """One sentence."""


Event = RunStarted | Staging | Measuring | Notice | BlockReceipt | BlockFailure
Listener = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Listen to nothing."""
