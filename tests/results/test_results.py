"""The tables of docs/results.md are read off the kept confusion matrices."""

import json
import statistics
import tomllib

import numpy as np
import pytest
from ablation_rows import ROWS, SINGLE, WAYS, find_row
from page_tables import filled, places
from results_page import ABLATIONS, CROSS_VALIDATION, NOT_YET, PAGE, TABLES, mean_iou, table_of, tile_classes_table, tiles_table

from pipeline.network.footprint import n_parameters
from pipeline.network.spec import NetworkSpec


@pytest.fixture(scope="module")
def ablations():
    if not ABLATIONS.exists():
        pytest.skip("not measured yet")
    return json.loads(ABLATIONS.read_text())


@pytest.fixture(scope="module")
def cross_validation():
    if not CROSS_VALIDATION.exists():
        pytest.skip("not measured yet")
    return json.loads(CROSS_VALIDATION.read_text())


def mean_iou_by_hand(confusion: list[list[int]]) -> float:
    """The mean IoU, written out."""
    found = []
    for i in range(len(confusion)):
        union = sum(confusion[i]) + sum(row[i] for row in confusion) - confusion[i][i]
        if union:
            found.append(confusion[i][i] / union)
    return statistics.fmean(found)


def cells_of(table: str) -> dict[str, list[str]]:
    """The cells behind the first of each row."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def test_the_page_shows_every_table_as_it_was_measured():
    page = PAGE.read_text()
    assert sorted(places(page)) == sorted(TABLES)
    assert filled(page, table_of) == page
    assert (NOT_YET in page) == (not ABLATIONS.exists() or not CROSS_VALIDATION.exists())


def test_every_row_was_run_in_every_way_and_repeated_rows_with_three_seeds(ablations):
    found = {(one["name"], one["seed"]): one for one in ablations["rows"]}
    assert len(found) == len(ablations["rows"])
    assert {name for name, _ in found} == {row.name for row in ROWS}
    tiles = {f"tile{number}" for number in ablations["settings"]["test_tiles"]}
    assert not tiles & {f"tile{number}" for number in ablations["settings"]["train_tiles"]}
    for row in ROWS:
        seeds = sorted(seed for name, seed in found if name == row.name)
        assert len(seeds) == (3 if row.is_repeated else 1)
        assert tuple(found[row.name, seeds[0]]["confusion"]) == WAYS
    assert all(set(one["confusion"][way]) == tiles for one in found.values() for way in one["confusion"])


def test_a_row_is_the_network_that_was_run(ablations):
    for one in ablations["rows"]:
        row = find_row(one["name"])
        assert NetworkSpec.from_dict(one["network"]) == row.network
        assert one["n_parameters"] == n_parameters(row.network)
        assert tuple(one["loss_scales"]) == row.loss_scales
        assert one["learning_rate"] == row.learning_rate
        assert tuple(one["several"]["scales"]) == row.several.scales


def test_all_rows_were_measured_on_the_same_pixels(ablations):
    labelled = {
        (tile, tuple(map(sum, matrix)))
        for one in ablations["rows"]
        for by_tile in one["confusion"].values()
        for tile, matrix in by_tile.items()
    }
    assert len(labelled) == len(ablations["settings"]["test_tiles"])


@pytest.mark.parametrize("paper", ["v1", "v2", "v3", "v3plus"])
def test_what_is_printed_is_the_mean_over_tiles_of_the_mean_iou(ablations, paper):
    table = cells_of(table_of(paper))
    assert list(table) == [row.title for row in ROWS if row.paper == paper]
    for one in ablations["rows"]:
        row = find_row(one["name"])
        if row.paper != paper or one["seed"] != min(other["seed"] for other in ablations["rows"]):
            continue
        printed = [cell.split(" ±")[0] for cell in table[row.title][1:5]]
        for way, cell in zip(WAYS, printed, strict=True):
            assert cell == f"{100 * statistics.fmean(map(mean_iou_by_hand, one['confusion'][way].values())):.1f}"
        assert tuple(table[row.title][5:7]) == row.theirs


def test_repeated_rows_show_their_spread(ablations):
    for row in ROWS:
        scores = [100 * mean_iou(one, SINGLE) for one in ablations["rows"] if one["name"] == row.name]
        cell = cells_of(table_of(row.paper))[row.title][1]
        assert ("±" in cell) == row.is_repeated
        if row.is_repeated:
            assert cell.endswith(f"± {np.std(scores, ddof=1):.1f}")


def test_a_model_that_had_not_seen_two_tiles_is_compared_on_these_and_all_of_another_are_shown():
    matrices = {"tile1": [[1, 1], [0, 1]], "tile2": [[1, 0], [0, 1]], "tile5": [[0, 1], [1, 0]]}
    rows = [
        {"model": model, "tile": tile, "way": "plain", "classes": ["land", "sea"], "confusion": matrices[tile]}
        for model, tile in [
            ("short", "tile1"),
            ("short", "tile2"),
            ("short", "tile5"),
            ("shipped", "tile2"),
            ("shipped", "tile5"),
        ]
    ]
    assert tiles_table({"rows": rows}).splitlines() == [
        "| model | tile1 | tile2 | tile5 | mean of tiles 2 and 5 | mean of all 3 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| shipped |  | 1.000 | 0.000 | 0.500 |  |",
        "| short | 0.500 | 1.000 | 0.000 | 0.500 | 0.500 |",
    ]
    assert tile_classes_table({"rows": rows}).splitlines()[3] == "| short | 3 | 0.500 | 0.500 |"


def test_every_figure_of_a_tile_is_that_of_its_matrix(cross_validation):
    shown = {cell for cells in cells_of(table_of("tiles")).values() for cell in cells}
    for one in cross_validation["rows"]:
        assert f"{mean_iou_by_hand(one['confusion']):.3f}" in shown
        assert len(one["confusion"]) == len(one["classes"])


def test_the_cross_validated_configuration_is_the_example(cross_validation):
    assert cross_validation["config"] == tomllib.loads((PAGE.parents[1] / "examples" / "train-dubai-short.toml").read_text())
