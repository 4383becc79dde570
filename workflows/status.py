"""How far is a run? Read from its record and journal, also while it is running."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.grid import Blocks
from pipeline.scene import SceneInfo
from pipeline.spec import SegmentSpec
from workflows.replay import Replay
from workflows.run_state import RunPaths, is_locked, read_record

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pipeline.window import Window
    from workflows.events import BlockFailure

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
    stage_s: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage, summed over the finished blocks, s."""
    unreadable: tuple[Window, ...] = ()
    """Places that the scene did not give, and that are nodata for that reason."""

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
    blocks = Blocks(shape=scene.shape, block_px=spec.grid.block_px)
    replay = Replay(paths.journal, run_id=record.run_id, blocks=blocks)
    ledger = replay.ledger
    return Status(
        n_blocks=len(blocks),
        n_done=ledger.n_done,
        n_nodata=ledger.n_nodata,
        n_failed=len(ledger.failures),
        running=is_locked(paths),
        n_pixels=scene.height * scene.width,
        n_pixels_finished=ledger.n_pixels,
        pixels_per_s=_speed(replay.recent),
        failures=tuple(ledger.failures.values()),
        stage_s={name: round(seconds, 3) for name, seconds in ledger.stage_s.items()},
        unreadable=ledger.unreadable_windows(),
    )


def _speed(recent: Iterable[tuple[float, int]]) -> float | None:
    """Return pixels per second between the first and the last of the (time, pixels) in ``recent``, pauses left out."""
    gaps = [(after - before, pixels) for (before, _), (after, pixels) in itertools.pairwise(recent)]
    worked = [(seconds, pixels) for seconds, pixels in gaps if seconds < _PAUSE_S]
    seconds, pixels = (sum(column) for column in zip(*worked, strict=True)) if worked else (0.0, 0)
    return pixels / seconds if seconds > 0 and pixels else None
