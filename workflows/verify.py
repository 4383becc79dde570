"""Is an output as it was written? Every file against its receipt, every pixel decoded, and no file that nobody speaks for.

::

    record, journal -> metadata -> blocks: files there, length, CRC-32C, decoded, counted -> leftovers -> verification
                                                                       --repair: remove what is wrong, and a resume does it again
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.chunk_files import first_pixel
from pipeline.durable_file import sync_directory
from pipeline.errors import StoreError
from pipeline.grid import Blocks
from pipeline.spec import SegmentSpec
from pipeline.store import open_reader
from pipeline.store_metadata import check_metadata, restore_metadata
from workflows.block_check import Damage, check_block
from workflows.events import BlockFailure
from workflows.journal_survey import DONE, FAILED, LEFT, NODATA, read_outcomes, survey_journal
from workflows.layout import is_of_these_versions, recorded_layout
from workflows.leftovers import find_leftovers
from workflows.run_state import RunPaths, is_locked, locked, read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from pipeline.store_metadata import MetadataCheck
    from workflows.block_check import BlockCheck, Reader
    from workflows.events import BlockReceipt
    from workflows.journal_survey import JournalLines, JournalSurvey
    from workflows.leftovers import Leftovers
    from workflows.run_state import RunRecord

    Progress = Callable[[int, int], None]

_N_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found of an output."""

    out: str
    """The Zarr group."""
    n_blocks: int
    """All blocks of the job."""
    n_sound: int
    """Finished blocks with data, with nothing wrong."""
    n_damaged: int
    """Finished blocks with data of which a file is wrong."""
    n_nodata: int
    """Skipped blocks."""
    n_failed: int
    """Quarantined blocks."""
    n_left: int
    """Blocks that are not finished."""
    n_files: int
    """Files that were compared with their receipts."""
    n_bytes: int
    """Their length, bytes."""
    decoded: bool
    """Whether their pixels were decoded and counted, too."""
    damages: tuple[Damage, ...]
    """All that is wrong."""
    failures: tuple[BlockFailure, ...]
    """The quarantined blocks."""
    n_unfinished_files: int
    """Files of blocks that are left; harmless, they will be written again."""
    n_partial_files: int
    """Files that killed writers left; harmless, a resume removes them."""
    foreign: tuple[str, ...]
    """Files and folders in the output that atrous did not write."""
    journal: JournalLines
    """Which lines of the journal count."""
    running: bool
    """Whether a process worked on the output meanwhile."""
    repaired: bool
    """Whether all that was wrong is removed or written anew."""
    seconds: float
    """Wall time, s."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or nothing is any more; unfinished blocks are not wrong."""
        return (not self.damages or self.repaired) and not self.n_failed

    @property
    def complete(self) -> bool:
        """Whether every block is finished and sound."""
        return self.sound and self.n_left == 0 and self.n_damaged == 0


def run(out: Path, *, decode: bool = True, repair: bool = False, on_progress: Progress | None = None) -> Verification:
    """Check the output ``out`` against the journal of its run.

    Parameters
    ----------
    out
        Root of an output, finished, unfinished, or being worked on.
    decode
        Also decode every pixel; without it, checksums prove that the bytes are those that were written.
    repair
        Remove damaged files, so that the next resume does their blocks again, and files that nobody speaks for; write damaged metadata
        anew. Needs the output for itself.
    on_progress
        Called with (blocks looked at, blocks to look at).

    Raises
    ------
    StoreError
        ``out`` has no state of a run, or cannot be read or repaired.
    LockedError
        A process works on the output, and ``repair`` was asked for.
    """
    paths = RunPaths(out=out.absolute())
    read_record(paths)  # the lock would make a folder where there is no run
    with locked(paths) if repair else nullcontext():
        return _Verifier(paths, read_record(paths), repair=repair).go(decode=decode, on_progress=on_progress or (lambda *_: None))


class _Verifier:
    """One look at one output."""

    def __init__(self, paths: RunPaths, record: RunRecord, *, repair: bool) -> None:
        self._started = time.perf_counter()
        self._paths, self._record, self._repair = paths, record, repair
        self._running = self._is_running()
        self._layout = recorded_layout(paths.out, record)
        self._blocks = Blocks(
            shape=(self._layout.height, self._layout.width), block_px=SegmentSpec.from_dict(record.spec).grid.block_px
        )
        self._damages: list[Damage] = []
        self._failures: list[BlockFailure] = []
        self._n_damaged, self._n_files, self._n_bytes = 0, 0, 0

    def go(self, *, decode: bool, on_progress: Progress) -> Verification:
        """Look at everything, and repair it where that was asked for."""
        metadata = self._check_metadata()
        broken = {item.key for item in metadata.mismatches}
        readable = [name for name in self._layout.array_names if f"0/{name}/zarr.json" not in broken]
        readers = {name: open_reader(self._paths.out, name) for name in readable if decode}
        survey = survey_journal(self._paths.journal, run_id=self._record.run_id, blocks=self._blocks)
        n_checks = survey.count(DONE)
        checks = _in_threads(lambda receipt: self._check(receipt, readers), self._receipts(survey))
        for n_checked, check in enumerate(checks, start=1):
            self._add(check)
            on_progress(n_checked, n_checks)
        leftovers = self._find_leftovers(survey, metadata.keys)
        if self._repair:
            self._remove(leftovers)
        return self._summary(survey, leftovers, decoded=len(readers) == len(self._layout.array_names))

    def _is_running(self) -> bool:
        return not self._repair and is_locked(self._paths)

    def _check_metadata(self) -> MetadataCheck:
        """Compare what no block writes; with ``repair``, write anew what is wrong."""
        found = check_metadata(self._paths.out, self._layout, exact=is_of_these_versions(self._record))
        self._damages += [Damage.of(item.reason, key=item.key) for item in found.mismatches]
        if self._repair:
            restore_metadata(self._paths.out, self._layout, [item.key for item in found.mismatches])
            return replace(found, mismatches=())
        return found

    def _receipts(self, survey: JournalSurvey) -> Iterator[BlockReceipt]:
        """Yield the receipts of finished blocks with data, and note the failures between them."""
        for outcome in read_outcomes(self._paths.journal, survey, run_id=self._record.run_id):
            if isinstance(outcome, BlockFailure):
                self._failures.append(outcome)
            elif outcome.state == "done":
                yield outcome

    def _check(self, receipt: BlockReceipt, readers: Mapping[str, Reader]) -> BlockCheck:
        return check_block(self._paths.out, self._layout, self._blocks.window(receipt.block), receipt, readers=readers)

    def _add(self, check: BlockCheck) -> None:
        self._n_files += check.n_files
        self._n_bytes += check.n_bytes
        self._n_damaged += bool(check.damages)
        self._damages += check.damages

    def _find_leftovers(self, survey: JournalSurvey, known: frozenset[str]) -> Leftovers:
        """Look for files that nobody speaks for; while a job runs, its journal may be about to."""
        found = find_leftovers(self._paths.out, self._layout, survey.states, block_px=self._blocks.block_px, known=known)
        self._running = self._running or self._is_running()
        if not self._running:
            words = {NODATA: "holds nodata only", FAILED: "failed"}
            self._damages += [
                Damage.of(f"stray: block {block} {words[int(survey.states[block])]}, and has no files", key=key, block=block)
                for key, block in found.strays
            ]
        return found

    def _remove(self, leftovers: Leftovers) -> None:
        """Remove, durably, the files of blocks that are wrong, and those that were never finished."""
        keys = {damage.key for damage in self._damages if first_pixel(self._layout, damage.key) is not None}
        folders = set()
        for path in (self._paths.out / key for key in sorted(keys | set(leftovers.partials))):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"{path} cannot be removed: {error.strerror}; remove it, and run again") from error
            folders.add(path.parent)
        for folder in folders:
            if folder.exists():
                sync_directory(folder)

    def _summary(self, survey: JournalSurvey, leftovers: Leftovers, *, decoded: bool) -> Verification:
        return Verification(
            out=str(self._paths.out),
            n_blocks=len(self._blocks),
            n_sound=survey.count(DONE) - self._n_damaged,
            n_damaged=self._n_damaged,
            n_nodata=survey.count(NODATA),
            n_failed=survey.count(FAILED),
            n_left=survey.count(LEFT),
            n_files=self._n_files,
            n_bytes=self._n_bytes,
            decoded=decoded,
            damages=tuple(self._damages),
            failures=tuple(self._failures),
            n_unfinished_files=leftovers.n_unfinished,
            n_partial_files=len(leftovers.partials),
            foreign=leftovers.foreign,
            journal=survey.lines,
            running=self._running,
            repaired=self._repair and bool(self._damages) and all(damage.key for damage in self._damages),
            seconds=round(time.perf_counter() - self._started, 3),
        )


def _in_threads(check: Callable[[BlockReceipt], BlockCheck], receipts: Iterable[BlockReceipt]) -> Iterator[BlockCheck]:
    """Yield the checks of all receipts in their order, a few at work at once."""
    with ThreadPoolExecutor(_N_THREADS) as pool:
        waiting: deque[Future[BlockCheck]] = deque()
        for receipt in receipts:
            waiting.append(pool.submit(check, receipt))
            if len(waiting) > 4 * _N_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
