"""What does a person see while a job runs? A bar on a terminal, a line every half minute elsewhere; always on stderr."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from workflows.events import BlockFailure, BlockReceipt, Measuring, Notice, RunStarted, Staging

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from workflows.events import Event

_LINE_EVERY_S = 30.0
_MPX = 1e6


class ProgressView:
    """Listens to the events of a run and shows them."""

    def __init__(self, console: Console, *, show_bar: bool | None = None, quiet: bool = False) -> None:
        self._console = console
        self._bar_shown = (console.is_terminal if show_bar is None else show_bar) and not quiet
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}% {task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._bar_shown,
            transient=False,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line_s = time.monotonic()
        self._started_s = time.monotonic()
        self._seen_px, self._total_px, self._n_seen, self._n_blocks = 0, 0, 0, 0
        self._what = "segmenting"

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, Staging):
            self.advance("copying to tiles", done=event.done, total=event.total)
        elif isinstance(event, Measuring):
            self.advance("measuring the scene's mean", done=event.done, total=event.total)
        elif isinstance(event, Notice):
            self.say(event.text)
        elif isinstance(event, BlockFailure):
            self.say(f"block {event.block} failed after {event.attempts} tries and is set aside: {event.error}")
            self._count(0)
        elif isinstance(event, BlockReceipt):
            self._count(event.n_pixels)

    def say(self, text: str) -> None:
        """Print one line."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, what: str, *, done: int, total: int, note: str = "") -> None:
        """Move the bar called ``what``."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note=note)
        self._progress.update(self._tasks[what], completed=done, total=total, note=note)
        if not self._bar_shown and not self._quiet:
            self._line(f"{what}: {100 * done / max(1, total):.0f}% {note}")

    def _start(self, event: RunStarted) -> None:
        self._started_s = time.monotonic()
        self._what = "segmenting" if event.engine else "refining"
        self._total_px, self._n_blocks, self._n_seen = event.pixels_left, event.n_blocks, event.n_finished
        if event.dashboard:
            self.say(f"dashboard: {event.dashboard}")
        resumed = f", {event.n_finished} of them finished earlier" if event.n_finished else ""
        workers = f"{event.n_workers} worker{'s' * (event.n_workers != 1)}"
        network = f"; network: {event.engine}" if event.engine else ""
        self.say(f"{event.n_blocks} block{'s' * (event.n_blocks != 1)}{resumed}; {workers}{network}")

    def _count(self, n_pixels: int) -> None:
        self._n_seen += 1
        self._seen_px += n_pixels
        speed = self._seen_px / _MPX / max(1e-3, time.monotonic() - self._started_s)
        note = f"{speed:.2f} Mpx/s, block {self._n_seen} of {self._n_blocks}"
        self.advance(self._what, done=self._seen_px, total=self._total_px, note=note)

    def _line(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = now
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
