"""What does a person read of an evaluation? A table for each pair and for all, what was left out, and the confusion matrix.

::

    out.zarr against labels.tif
    counted  2.41 of 2.62 Mpx: 7.9 % have no label, 0.1 % a label and no prediction

    class       IoU   95 %            F1      precision  recall   labelled px
    building    0.3812  0.352-0.411   0.5520  ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workflows.confusion import mean_of_existing, number_or_none

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workflows.confusion import SceneMetrics
    from workflows.evaluate import Evaluation, Figures
    from workflows.evaluation_intervals import Interval

_COLUMNS = ("IoU", "95 %", "F1", "precision", "recall", "labelled px")
_WIDTHS = (8, 16, 8, 11, 8, 15)
_WIDE_CLASSES = 12
"""With more classes nothing is printed that has a column for each; --json and --png have it."""


def evaluation_lines(found: Evaluation) -> list[str]:
    """Return a table for each pair, for several also over all and their mean, and the matrix over all."""
    several = len(found.pairs) > 1
    lines = [line for _, figures in found.pairs for line in (*_table(figures, found.trimap_px), "")]
    if several:
        lines += [*_table(found.pooled, found.trimap_px), "", *_mean_lines(found), ""]
    return [*lines, *_matrix_lines(found.pooled.metrics), *_interval_lines(found)]


def evaluation_to_dict(found: Evaluation) -> dict[str, Any]:
    """Return everything as JSON-able values; figures that do not exist are None."""
    pairs = [
        {
            "prediction": str(pair.prediction),
            "labels": str(pair.labels),
            "block_px": block_px,
            **_figures_to_dict(figures, found.trimap_px),
        }
        for (pair, figures), block_px in zip(found.pairs, found.block_px, strict=True)
    ]
    return {
        "classes": list(found.classes),
        "pairs": pairs,
        "all": _figures_to_dict(found.pooled, found.trimap_px),
        "mean_of_pairs": mean_of_pairs(found),
        "trimap_px": found.trimap_px,
        "seconds": found.seconds,
    }


def mean_of_pairs(found: Evaluation) -> dict[str, Any]:
    """Return the means of the pairs' figures, each over the pairs that have it: every pair weighs the same, however large."""
    metrics = [figures.metrics for _, figures in found.pairs]
    return {
        "iou": {name: _mean(one.iou[name] for one in metrics) for name in found.classes},
        "mean_iou": _mean(one.mean_iou for one in metrics),
        "frequency_weighted_iou": _mean(one.frequency_weighted_iou for one in metrics),
        "accuracy": _mean(one.accuracy for one in metrics),
        "trimap_accuracy": _mean(figures.trimap.accuracy(found.trimap_px) for _, figures in found.pairs),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    return _rounded(number_or_none(mean_of_existing(np.array([np.nan if value is None else value for value in values]))))


def _table(figures: Figures, trimap_px: int) -> list[str]:
    metrics = figures.metrics
    width = _name_width(metrics.classes)
    columns = (metrics.iou, metrics.f1, metrics.precision, metrics.recall)
    counts = metrics.tally.labelled
    rows = []
    for i, name in enumerate(metrics.classes):
        iou, *others = (column[name] for column in columns)
        cells = (_share(iou), _range(figures.intervals.iou[i]), *map(_share, others), f"{counts[i]:,}")
        rows.append(_line(name, cells, width))
    mean = (_share(metrics.mean_iou), _range(figures.intervals.mean_iou), "", "", "", f"{metrics.n_pixels:,}")
    near = f"within {trimap_px} px of a boundary {_share(figures.trimap.accuracy(trimap_px))}"
    overall = f"frequency-weighted IoU {_share(metrics.frequency_weighted_iou)}; right {_share(metrics.accuracy)}, {near}"
    lines = [_line("class", _COLUMNS, width), *rows, _line("mean", mean, width)]
    return [metrics.scene, _counted(figures), "", *lines, "", overall]


def _line(name: str, cells: Iterable[str], width: int) -> str:
    return f"{name:<{width}}" + "".join(f"{cell:>{room}}" for cell, room in zip(cells, _WIDTHS, strict=True))


def _counted(figures: Figures) -> str:
    n_counted = figures.metrics.n_pixels
    unlabelled, unpredicted = (100 * n / figures.n_pixels for n in (figures.n_unlabelled, figures.n_unpredicted))
    return (
        f"counted {n_counted:,} of {figures.n_pixels:,} px: {unlabelled:.2f} % have no label, {unpredicted:.2f} % have a label and no "
        "prediction"
    )


def _mean_lines(found: Evaluation) -> list[str]:
    """Return the mean over pairs, and the pairs it is of."""
    metrics = [figures.metrics for _, figures in found.pairs]
    width = max(_name_width(found.classes), *(len(one.scene) + 2 for one in metrics))
    shown = found.classes if len(found.classes) <= _WIDE_CLASSES else ()
    mean = mean_of_pairs(found)
    values = [(one.scene, one.iou, one.mean_iou) for one in metrics]
    values.append((f"mean of {len(metrics)} pairs", mean["iou"], mean["mean_iou"]))
    rows = [(name, [_share(one) for one in (*(iou[name] for name in shown), mean_iou)]) for name, iou, mean_iou in values]
    return _grid("IoU", [*shown, "mean"], rows, width)


def _matrix_lines(metrics: SceneMetrics) -> list[str]:
    """Return the matrix in per cent of each true class."""
    if len(metrics.classes) > _WIDE_CLASSES:
        return [f"the matrix of {len(metrics.classes)} classes is in --json and --png"]
    corner = "% of true, as"
    rows = [
        (name, [f"{100 * count / sum(row):.1f}" if sum(row) else "-" for count in row])
        for name, row in zip(metrics.classes, metrics.confusion, strict=True)
    ]
    return _grid(corner, list(metrics.classes), rows, max(_name_width(metrics.classes), len(corner) + 2))


def _grid(corner: str, names: list[str], rows: list[tuple[str, list[str]]], width: int) -> list[str]:
    """Return a header and rows whose columns are as wide as their names need."""
    rooms = [max(8, len(name) + 2) for name in names]
    return [
        f"{head:<{width}}" + "".join(f"{cell:>{room}}" for cell, room in zip(cells, rooms, strict=True))
        for head, cells in [(corner, names), *rows]
    ]


def _interval_lines(found: Evaluation) -> list[str]:
    n_blocks, sides = found.pooled.intervals.n_blocks, sorted(set(found.block_px))
    blocks = f"{n_blocks} block{'s' * (n_blocks != 1)} of {' and '.join(map(str, sides))} px"
    if found.pooled.intervals.mean_iou is None:
        return ["", f"no intervals: {blocks} say too little; a smaller --block gives more"]
    return ["", f"95 %: bootstrap over blocks of ground, {blocks} in all; what other ground of the same scenes would give"]


def _figures_to_dict(figures: Figures, trimap_px: int) -> dict[str, Any]:
    metrics, intervals = figures.metrics, figures.intervals
    tally = metrics.tally
    by_class = {
        name: {
            "iou": _rounded(metrics.iou[name]),
            "iou_95": _interval(intervals.iou[i]),
            "f1": _rounded(metrics.f1[name]),
            "precision": _rounded(metrics.precision[name]),
            "recall": _rounded(metrics.recall[name]),
            "n_labelled": int(tally.labelled[i]),
            "n_predicted": int(tally.predicted[i]),
        }
        for i, name in enumerate(metrics.classes)
    }
    return {
        "name": metrics.scene,
        "mean_iou": _rounded(metrics.mean_iou),
        "mean_iou_95": _interval(intervals.mean_iou),
        "frequency_weighted_iou": _rounded(metrics.frequency_weighted_iou),
        "accuracy": _rounded(metrics.accuracy),
        "trimap_accuracy": _rounded(figures.trimap.accuracy(trimap_px)),
        "trimap_curve": [_rounded(figures.trimap.accuracy(width)) for width in range(1, trimap_px + 1)],
        "by_class": by_class,
        "confusion": [list(row) for row in metrics.confusion],
        "n_pixels": figures.n_pixels,
        "n_counted": metrics.n_pixels,
        "n_unlabelled": figures.n_unlabelled,
        "n_unpredicted": figures.n_unpredicted,
        "n_blocks": intervals.n_blocks,
    }


def _name_width(names: Iterable[str]) -> int:
    return max(len("class"), *map(len, names)) + 2


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def _interval(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [_rounded(interval.low), _rounded(interval.high)]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
