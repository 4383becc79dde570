"""On a terminal a bar, elsewhere now and then a line, and with --quiet nothing."""

from __future__ import annotations

import dataclasses
from io import StringIO

import pytest
from rich.console import Console

from workflows import progress
from workflows.events import BlockFailure, Measuring, Notice, RunStarted, Staging
from workflows.progress import ProgressView

STARTED = RunStarted(
    n_blocks=4, n_finished=1, pixels_left=36, n_workers=2, dashboard="http://127.0.0.1:8787/status", engine="fp32"
)


@pytest.fixture
def screen():
    return StringIO()


def view_of(screen, *, terminal=False, **options) -> ProgressView:
    return ProgressView(Console(file=screen, force_terminal=terminal, width=60), **options)


def test_a_log_file_gets_lines_and_no_bar(screen, receipt):
    with view_of(screen) as view:
        view(STARTED)
        view(receipt(0, 0))
    assert (
        screen.getvalue()
        == "dashboard: http://127.0.0.1:8787/status\n4 blocks, 1 of them finished earlier; 2 workers; network: fp32\n"
    )


def test_one_is_not_many(screen):
    with view_of(screen) as view:
        view(RunStarted(n_blocks=1, n_finished=0, pixels_left=36, n_workers=1, dashboard=None))
    assert screen.getvalue() == "1 block; 1 worker\n"


def test_a_line_every_half_minute(screen, receipt, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with view_of(screen, show_bar=False) as view:
        view(STARTED)
        for seconds in (10, 10, 10.5, 10):
            now[0] += seconds
            view(receipt(n_pixels=9))
    lines = screen.getvalue().splitlines()[2:]
    assert lines == ["segmenting: 75% 0.00 Mpx/s, block 4 of 4"]


def test_a_terminal_gets_a_bar_that_reaches_its_end(screen, receipt):
    with view_of(screen, terminal=True) as view:
        view(STARTED)
        for _ in range(3):
            view(receipt(n_pixels=12))
    text = screen.getvalue()
    assert "segmenting" in text
    assert "100%" in text


def test_notices_and_failures_are_one_line_each_and_no_markup(screen):
    long = "[bold]" + "word " * 50
    with view_of(screen) as view:
        view(Notice(text=long))
        view(BlockFailure(block=(3, 4), error="OSError: [Errno 5]", attempts=3))
    assert screen.getvalue().splitlines() == [
        long,
        "block (3, 4) failed after 3 tries and is set aside: OSError: [Errno 5]",
    ]


def test_quiet_says_nothing(screen, receipt):
    with view_of(screen, terminal=True, quiet=True, show_bar=True) as view:
        for event in (
            STARTED,
            Notice(text="x"),
            Staging(done=1, total=2),
            Measuring(done=1, total=2),
            receipt(),
            BlockFailure(block=(0, 0), error="x", attempts=1),
        ):
            view(event)
    assert screen.getvalue() == ""


@pytest.mark.parametrize(("event", "title"), [(Staging, "copying to tiles"), (Measuring, "measuring the scene's mean")])
def test_what_comes_before_the_blocks_has_a_bar_of_its_own(screen, receipt, event, title):
    with view_of(screen, terminal=True) as view:
        view(event(done=5, total=10))
        view(event(done=10, total=10))
        view(STARTED)
        view(receipt(n_pixels=36))
    assert title in screen.getvalue()
    assert "segmenting" in screen.getvalue()


def test_where_no_network_runs_it_is_not_called_segmenting(screen, receipt):
    with view_of(screen, terminal=True) as view:
        view(dataclasses.replace(STARTED, engine=""))
        view(receipt(n_pixels=36))
    assert "refining" in screen.getvalue()
    assert "segmenting" not in screen.getvalue()


def test_a_scene_without_pixels_left_divides_by_nothing(screen):
    with view_of(screen) as view:
        view.advance("exporting", done=0, total=0)
    assert screen.getvalue() == ""
