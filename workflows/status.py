"""How far is a run? Read from its record and journal, also while it is running."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.grid import Blocks
from pipeline.scene import SceneInfo
from pipeline.spec import SegmentSpec
from workflows.events import BlockFailure, BlockReceipt
from workflows.journal import Entry, latest, read_entries
from workflows.run_state import RunPaths, is_locked, read_record

if TYPE_CHECKING:
    from pathlib import Path

_RECENT = 50
"""Blocks that the speed is measured over."""
_PAUSE_S = 600.0
"""A longer gap between two blocks was a pause between runs, not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a run is."""

    n_blocks: int
    """All blocks."""
    n_done: int
    """Finished blocks with data."""
    n_nodata: int
    """Skipped blocks."""
    n_failed: int
    """Quarantined blocks."""
    running: bool
    """Whether a process works on it now."""
    n_pixels: int
    """Pixels of the scene."""
    n_pixels_finished: int
    """Pixels of finished and skipped blocks."""
    pixels_per_s: float | None
    """Over the last blocks; None before the second one."""
    failures: tuple[BlockFailure, ...]
    """The quarantined blocks."""

    @property
    def n_left(self) -> int:
        """Blocks neither finished, skipped nor quarantined."""
        return self.n_blocks - self.n_done - self.n_nodata - self.n_failed

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the present speed; None where the speed is not known, 0 where nothing is left."""
        if self.n_left == 0:
            return 0.0
        if not self.pixels_per_s:
            return None
        return (self.n_pixels - self.n_pixels_finished) / self.pixels_per_s


def status(out: Path) -> Status:
    """Read the state of the run that makes ``out``."""
    paths = RunPaths(out=out.absolute())
    record = read_record(paths)
    spec, scene = SegmentSpec.from_dict(record.spec), SceneInfo.from_dict(record.scene)
    entries = list(read_entries(paths.journal, run_id=record.run_id))
    outcomes = list(latest(iter(entries)).values())
    receipts = [item for item in outcomes if isinstance(item, BlockReceipt)]
    failures = tuple(item for item in outcomes if isinstance(item, BlockFailure))
    return Status(
        n_blocks=len(Blocks(shape=scene.shape, block_px=spec.grid.block_px)),
        n_done=sum(item.state == "done" for item in receipts),
        n_nodata=sum(item.state == "nodata" for item in receipts),
        n_failed=len(failures),
        running=is_locked(paths),
        n_pixels=scene.height * scene.width,
        n_pixels_finished=sum(item.n_pixels for item in receipts),
        pixels_per_s=_speed(entries[-_RECENT:]),
        failures=failures,
    )


def _speed(entries: list[Entry]) -> float | None:
    """Return pixels per second between the first and the last of ``entries``, pauses left out."""
    pairs = list(itertools.pairwise(entries))
    worked = [(after, after.time_s - before.time_s) for before, after in pairs if after.time_s - before.time_s < _PAUSE_S]
    seconds = sum(gap for _, gap in worked)
    pixels = sum(entry.outcome.n_pixels for entry, _ in worked if isinstance(entry.outcome, BlockReceipt))
    return pixels / seconds if seconds > 0 and pixels else None
