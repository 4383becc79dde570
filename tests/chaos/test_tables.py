"""The tables of docs/reliability.md are those of the kept results, and no promise is broken in them."""

import pytest
from page_tables import places
from tables import PAGE, RESULTS, kept, with_tables

NAMES = sorted(path.stem for path in RESULTS.glob("*.json"))


def test_the_page_has_every_table_and_each_as_it_was_measured():
    page = PAGE.read_text()
    assert with_tables(page) == page
    assert sorted(places(page)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_kept_table_was_made_in_full(name):
    table = kept(name)
    assert table.rows
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "--quick" not in table.command


def cells(name: str, column: str) -> list[str]:
    table = kept(name)
    return [row[table.columns.index(column)] for row in table.rows]


def test_no_block_was_lost():
    assert set(cells("storage", "of these lost")) == set(cells("power_cut", "of these lost")) == {"0"}
    assert {cell.split(" of ")[0] for cell in cells("poison", "other blocks lost")} == {"0"}
    assert set(cells("poison", "exit code")) == {"4"}


@pytest.mark.parametrize("name", ["storage", "power_cut"])
def test_all_ended_with_the_same_bytes(name):
    for cell in cells(name, "ended with the same bytes afterwards"):
        same, total = cell.split(" of ")
        assert same == total
