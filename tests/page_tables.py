"""Where do measured tables stand in a page? Between ``<!-- table: NAME -->`` and ``<!-- end -->``; a script puts them there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with its heads."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


def filled(page: str, table_of: Callable[[str], str]) -> str:
    """Return the text of a page with ``table_of(name)`` in each place."""
    return _PLACE.sub(lambda place: f"{place[1]}{table_of(place[2])}{place[3]}", page)


def places(page: str) -> list[str]:
    """Return the names of the places in a page, in their order."""
    return [place[2] for place in _PLACE.finditer(page)]
