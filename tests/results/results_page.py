"""What do the kept counts say? The tables of docs/results.md, made from ``ablations.json`` and ``cross_validation.json``.

``python tests/results/results_page.py`` puts them into the page. Every figure is read off confusion matrices here; the page holds none
that a matrix does not.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The root makes `pipeline` the package, and not the folder tests/pipeline.
sys.path.extend(str(Path(__file__).resolve().parents[level]) for level in (1, 2))

import numpy as np
from ablation_rows import ROWS, SINGLE, WAYS, Row, find_row
from page_tables import filled, markdown_table

from workflows.confusion import SceneMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"
ABLATIONS = Path(__file__).with_name("ablations.json")
CROSS_VALIDATION = Path(__file__).with_name("cross_validation.json")
NOT_YET = "Not measured yet.\n"

_WAYS_OF_DEFAULT = {"plain": "", "scales": ", several scales", "plain+crf": " + CRF", "scales+crf": ", several scales + CRF"}


def table_of(name: str) -> str:
    """Return the table that stands in the place ``name``."""
    make, path = _TABLES[name]
    return make(json.loads(path.read_text())) if path.exists() else NOT_YET


# The papers' ablations


def ablation_table(kept: dict[str, Any], paper: str) -> str:
    """Return one paper's rows, ours beside theirs; a row that was not run has no figures of ours."""
    heads = ("network", "parameters", "one scale", "+ CRF", "several", "+ CRF", "paper: alone", "with more", "of")
    first = {one["name"]: one for one in reversed(kept["rows"])}
    return markdown_table(heads, [_ablation_row(row, first.get(row.name), kept) for row in ROWS if row.paper == paper])


def _ablation_row(row: Row, one: dict[str, Any] | None, kept: dict[str, Any]) -> list[str]:
    ours = ["", *[""] * len(WAYS)]
    if one is not None:
        ours = [f"{one['n_parameters'] / 1e6:.2f} M", *(_percent(mean_iou(one, way)) for way in WAYS)]
        scores = seed_scores(kept, row.name)
        if len(scores) > 1:
            ours[1] += f" ± {100 * statistics.stdev(scores.values()):.1f}"
    return [row.title, *ours, *row.theirs, row.source]


def seeds_table(kept: dict[str, Any]) -> str:
    """Return what repeated rows gave with each seed, at one scale, without CRF."""
    scores = {row.name: seed_scores(kept, row.name) for row in ROWS if row.is_repeated}
    seeds = sorted({seed for one in scores.values() for seed in one})
    rows = []
    for name, one in scores.items():
        spread = statistics.stdev(one.values()) if len(one) > 1 else None
        mean = statistics.fmean(one.values()) if one else None
        row = find_row(name)
        cells = (_percent(one.get(seed)) for seed in seeds)
        rows.append([f"{_PAPERS[row.paper]} {row.title}", *cells, _percent(mean), _percent(spread)])
    return markdown_table(["network", *(f"seed {seed}" for seed in seeds), "mean", "standard deviation"], rows)


def classes_table(kept: dict[str, Any]) -> str:
    """Return each tile's mean IoU and, as means over the tiles, the classes' IoUs; at one scale, without CRF."""
    tiles = [f"tile{number}" for number in kept["settings"]["test_tiles"]]
    classes = kept["settings"]["classes"]
    rows = []
    for one in _first_runs(kept):
        row, metrics = find_row(one["name"]), [_metrics(one["confusion"][SINGLE][tile], classes) for tile in tiles]
        by_class = (_mean(metric.iou[name] for metric in metrics) for name in classes)
        cells = [*(metric.mean_iou for metric in metrics), *by_class]
        rows.append([f"{_PAPERS[row.paper]} {row.title}", *map(_percent, cells)])
    return markdown_table(["network", *(f"{tile}: mean" for tile in tiles), *classes], rows)


def runs_table(kept: dict[str, Any]) -> str:
    """Return under which settings and in what time the rows were made."""
    training, runs = kept["settings"]["training"], kept["rows"]
    schedule = training["schedule"]
    rows = [
        ["steps", f"{schedule['n_steps']}"],
        ["windows in a step", f"{schedule['batch']} of {schedule['window_px']} x {schedule['window_px']} px"],
        ["learning rate of the backbone", f"{training['backbone_rate']:g}"],
        ["of what follows it", _rates(runs)],
        ["rule", f"{training['optimizer']['name']}, {schedule['policy']} {schedule['power']}"],
        ["windows are enlarged by", "{} to {}".format(*training["augmentation"]["scale_range"])],
        ["arithmetic of training", training["precision"]],
        ["trained on", _numbers("tile", kept["settings"]["train_tiles"])],
        ["measured on", _numbers("tile", kept["settings"]["test_tiles"])],
        ["`atrous segment`", " ".join(kept["settings"]["segment"])],
        ["CRF", ", ".join(f"{name} {value}" for name, value in kept["settings"]["crf"].items())],
        ["machine", "; ".join(dict.fromkeys(f"{run['machine']}, {run['threads']} thread(s)" for run in runs))],
        ["date", ", ".join(dict.fromkeys(run["date"] for run in runs))],
        [
            "time of all",
            f"{_minutes(runs, 'train_s')} min of training, {_minutes(runs, 'measure_s')} min of measuring, beside other work",
        ],
    ]
    return markdown_table(["setting", "value"], rows)


def _rates(runs: list[dict[str, Any]]) -> str:
    """Return "0.002 (v3, v3+), 0.001 (v1)"."""
    papers: dict[float, dict[str, None]] = {}
    for run in runs:
        papers.setdefault(run["learning_rate"], {})[_PAPERS[find_row(run["name"]).paper]] = None
    return ", ".join(f"{rate:g} ({', '.join(papers[rate])})" for rate in sorted(papers, reverse=True))


def _minutes(runs: list[dict[str, Any]], name: str) -> str:
    return f"{sum(run[name] for run in runs) / 60:.0f}"


def mean_iou(one: dict[str, Any], way: str) -> float | None:
    """Return the mean over the tiles of the mean IoU, 0 to 1; None where a run was not measured that way."""
    matrices = one["confusion"].get(way, {})
    classes = [str(index) for index in range(len(next(iter(matrices.values()), [])))]
    return _mean(_metrics(matrix, classes).mean_iou for matrix in matrices.values())


def seed_scores(kept: dict[str, Any], name: str) -> dict[int, float]:
    """Return the mean IoU of each run of a row by its seed, at one scale, without CRF."""
    found = {one["seed"]: mean_iou(one, SINGLE) for one in kept["rows"] if one["name"] == name}
    return {seed: score for seed, score in found.items() if score is not None}


def _first_runs(kept: dict[str, Any]) -> list[dict[str, Any]]:
    first = {one["name"]: one for one in reversed(kept["rows"])}
    return [first[row.name] for row in ROWS if row.name in first]


# The default model


def tiles_table(kept: dict[str, Any]) -> str:
    """Return the mean IoU of every model and way on each tile that it never saw, and the means over tiles."""
    tiles, shared = _tiles(kept)
    heads = ["model", *tiles, *([f"mean of {_numbers('', shared)}"] if shared != tiles else []), f"mean of all {len(tiles)}"]
    rows = []
    for label, by_tile in _models(kept):
        scores = {tile: metrics.mean_iou for tile, metrics in by_tile.items()}
        cells = [scores.get(tile) for tile in tiles]
        part = [_mean(scores[tile] for tile in shared)] if shared != tiles else []
        rows.append([label, *map(_share, [*cells, *part, _mean(cells) if len(scores) == len(tiles) else None])])
    return markdown_table(heads, rows)


def tile_classes_table(kept: dict[str, Any]) -> str:
    """Return the IoU of every class by model and way, means over the tiles that each was measured on."""
    classes = kept["rows"][0]["classes"]
    rows = [
        [label, f"{len(by_tile)}", *(_share(_mean(metrics.iou[name] for metrics in by_tile.values())) for name in classes)]
        for label, by_tile in _models(kept)
    ]
    return markdown_table(["model", "tiles", *classes], rows)


def _tiles(kept: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return all tiles, and those that every model was measured on."""
    by_model: dict[str, set[str]] = {}
    for one in kept["rows"]:
        by_model.setdefault(one["model"], set()).add(one["tile"])
    return sorted(set.union(*by_model.values())), sorted(set.intersection(*by_model.values()))


def _models(kept: dict[str, Any]) -> list[tuple[str, dict[str, SceneMetrics]]]:
    """Return what is shown of each model and way, with the metrics by tile."""
    found: dict[tuple[str, str], dict[str, SceneMetrics]] = {}
    for one in kept["rows"]:
        found.setdefault((one["model"], one["way"]), {})[one["tile"]] = _metrics(one["confusion"], one["classes"])
    ways = list(_WAYS_OF_DEFAULT)
    order = sorted(found, key=lambda key: (key[0] != "shipped", ways.index(key[1])))
    return [(f"{model}{_WAYS_OF_DEFAULT[way]}", found[model, way]) for model, way in order]


def _metrics(confusion: list[list[int]], classes: list[str]) -> SceneMetrics:
    return SceneMetrics.of_matrix("", tuple(classes), np.array(confusion, np.int64))


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _numbers(word: str, given: list[Any]) -> str:
    """Return "tiles 1, 4 and 7"."""
    *most, last = (str(one).removeprefix("tile") for one in given)
    joined = f"{', '.join(most)} and {last}" if most else last
    return f"{word}{'s' * bool(most)} {joined}".strip() if word else f"tiles {joined}"


_PAPERS = {"v1": "v1", "v2": "v2", "v3": "v3", "v3plus": "v3+"}
_TABLES: dict[str, tuple[Callable[[dict[str, Any]], str], Path]] = {
    "v1": (lambda kept: ablation_table(kept, "v1"), ABLATIONS),
    "v2": (lambda kept: ablation_table(kept, "v2"), ABLATIONS),
    "v3": (lambda kept: ablation_table(kept, "v3"), ABLATIONS),
    "v3plus": (lambda kept: ablation_table(kept, "v3plus"), ABLATIONS),
    "seeds": (seeds_table, ABLATIONS),
    "classes": (classes_table, ABLATIONS),
    "runs": (runs_table, ABLATIONS),
    "tiles": (tiles_table, CROSS_VALIDATION),
    "tile-classes": (tile_classes_table, CROSS_VALIDATION),
}
TABLES = tuple(_TABLES)
"""Names of all places."""

if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), table_of))
