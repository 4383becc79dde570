"""Which line of a journal speaks for a block, and what is wrong with the others? Read line by line; a block costs nine bytes of memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import LockedError
from workflows.events import BlockFailure
from workflows.journal import FORMAT, open_to_read, parse_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import Blocks
    from workflows.events import Outcome

LEFT, DONE, NODATA, FAILED = range(4)
"""What the journal says of a block."""
_STATES = {"done": DONE, "nodata": NODATA}


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLines:
    """How many lines of a journal count, and how many do not."""

    n_lines: int
    """All lines, with one that was cut short."""
    n_replaced: int
    """Lines of a block that has a later one."""
    n_foreign: int
    """Lines of another run or another version; they do not count."""
    n_unreadable: int
    """Lines that are no JSON, or say nothing about a block of this scene; they do not count."""
    torn: bool
    """Whether the last line was cut short, by a crash or because it is being written."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JournalSurvey:
    """What a journal held when it was looked at."""

    lines: JournalLines
    """Which lines count."""
    states: NDArray[np.uint8]
    """LEFT, DONE, NODATA or FAILED of every block, (rows, columns) of blocks."""
    starts: NDArray[np.int64]
    """Where the last line of every block starts in the file, bytes; -1 without one. (rows, columns) of blocks."""

    def count(self, state: int) -> int:
        """Count the blocks in a state."""
        return int(np.count_nonzero(self.states == state))


class _Tally:
    """What was seen of the lines so far."""

    def __init__(self, blocks: Blocks, run_id: str) -> None:
        shape = blocks.n_rows, blocks.n_cols
        self.states, self.starts = np.zeros(shape, np.uint8), np.full(shape, -1, np.int64)
        self.n_lines, self.n_replaced, self.n_foreign, self.n_unreadable, self.torn = 0, 0, 0, 0, False
        self._run_id, self._blocks = run_id, blocks

    def add(self, line: bytes, start: int) -> None:
        self.n_lines += 1
        entry = parse_line(line, run_id=self._run_id)
        if entry is not None and self._blocks.holds(entry.outcome.block):
            self._count(entry.outcome, start)
        elif not line.endswith(b"\n"):
            self.torn = True
        elif entry is None and _is_foreign(line, self._run_id):
            self.n_foreign += 1
        else:
            self.n_unreadable += 1

    def _count(self, outcome: Outcome, start: int) -> None:
        self.n_replaced += int(self.starts[outcome.block] >= 0)
        self.starts[outcome.block] = start
        self.states[outcome.block] = FAILED if isinstance(outcome, BlockFailure) else _STATES[outcome.state]


def survey_journal(path: Path, *, run_id: str, blocks: Blocks) -> JournalSurvey:
    """Read a journal once; a missing one has no lines."""
    tally = _Tally(blocks, run_id)
    for start, line in _lines(path):
        tally.add(line, start)
    names = ("n_lines", "n_replaced", "n_foreign", "n_unreadable", "torn")
    lines = JournalLines(**{name: getattr(tally, name) for name in names})
    return JournalSurvey(lines=lines, states=tally.states, starts=tally.starts)


def read_outcomes(path: Path, survey: JournalSurvey, *, run_id: str) -> Iterator[Outcome]:
    """Yield the last outcome of every block as the survey found it, in the order of the file."""
    wanted = np.sort(survey.starts[survey.starts >= 0])
    if not wanted.size:
        return
    with open_to_read(path) as file:
        for start in wanted:
            file.seek(int(start))
            entry = parse_line(file.readline(), run_id=run_id)
            if entry is None:
                raise LockedError(f"{path} was begun anew while it was read, though journals only grow; run again")
            yield entry.outcome


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.exists():
        return
    start = 0
    with open_to_read(path) as file:
        for line in file:
            yield start, line
            start += len(line)


def _is_foreign(line: bytes, run_id: str) -> bool:
    try:
        data = json.loads(line)
        return bool(data["v"] != FORMAT or data["run"] != run_id)
    except (ValueError, KeyError, TypeError):
        return False
