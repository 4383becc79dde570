"""What did an attack show? A table per script: printed, kept as JSON, and put into docs/reliability.md.

``python tests/chaos/SCRIPT.py`` prints its table; with ``--keep`` it also writes ``tests/chaos/results/SCRIPT.json``, and
``python tests/chaos/tables.py`` copies the kept tables to their places in the page.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from page_tables import filled, markdown_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The result of one script."""

    name: str
    """Of the script, and of the place in the page."""
    columns: tuple[str, ...]
    """Heads."""
    rows: tuple[tuple[str, ...], ...]
    """Cells as text."""
    command: str
    """What was run."""
    measured: str
    """When and on what."""

    def to_markdown(self) -> str:
        """Return the table with a line that says how it was made."""
        return f"{markdown_table(self.columns, self.rows)}\n`{self.command}`; {self.measured}.\n"


def parser(description: str, *, command: str) -> argparse.ArgumentParser:
    """Return a parser that knows ``--keep`` and ``--quick``."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.set_defaults(command=command)
    made.add_argument("--keep", action="store_true", help="write the table to tests/chaos/results, for the page")
    made.add_argument("--quick", action="store_true", help="fewer repetitions")
    return made


def publish(options: argparse.Namespace, *, name: str, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Print a table, and keep it where ``--keep`` was given."""
    table = Table(
        name=name,
        columns=columns,
        rows=tuple(tuple(str(cell) for cell in row) for row in rows),
        command=f"python tests/chaos/{options.command}" + (" --quick" if options.quick else ""),
        measured=f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}",
    )
    print(table.to_markdown(), flush=True)  # noqa: T201  (a script's result)
    if options.keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(asdict(table), indent=1) + "\n")


def kept(name: str) -> Table:
    """Return a table that was kept."""
    data = json.loads((RESULTS / f"{name}.json").read_text())
    return Table(**{**data, "columns": tuple(data["columns"]), "rows": tuple(map(tuple, data["rows"]))})


def with_tables(page: str) -> str:
    """Return the text of the page with every kept table in its place."""
    return filled(page, lambda name: kept(name).to_markdown())


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
