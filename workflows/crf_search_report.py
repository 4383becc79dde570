"""What does a person read of a CRF search? A table with the network alone on top, a verdict, and a chart."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pipeline.chart import BLUE, GREY, ORANGE, Panel, Series, draw_chart
from pipeline.durable_file import name_partial, publish
from pipeline.errors import StoreError
from workflows.crf_grid import AXES
from workflows.trimap import WIDEST_PX

if TYPE_CHECKING:
    from pathlib import Path

    from workflows.crf_search import SearchReport, SearchRow

_X_LABELS = {"w_appearance": "w_appearance", "theta_alpha": "theta_alpha, px", "theta_beta": "theta_beta"}
_WIDTHS = (14, 12, 12, 8, 8, 8)


def search_lines(report: SearchReport) -> list[str]:
    """Return the table, best first, IoU by class before and after, and what it comes to."""
    header = (*AXES, "mIoU", "right", f"<= {report.trimap_px} px")
    rows = sorted(report.rows, key=lambda row: -(row.metrics.mean_iou or 0.0))
    tiles = f"{report.n_tiles} of {report.n_tiles_labelled} labelled CRF tiles of {', '.join(report.sources)}"
    n_pixels = sum(map(sum, report.network.metrics.confusion))
    return [
        f"{tiles}: {n_pixels / 1e6:.2f} Mpx with labels",
        "",
        _line(header),
        _line(("network alone", "", "", *_figures(report.network, report.trimap_px))),
        *(_line((*_values(row), *_figures(row, report.trimap_px))) for row in rows),
        "",
        *_class_lines(report),
        "",
        _verdict(report),
    ]


def search_to_dict(report: SearchReport) -> dict[str, Any]:
    """Return the report as JSON-able values, in the order in which CRFs were tried."""
    return {
        "network": _row_to_dict(report.network, report.trimap_px),
        "rows": [_row_to_dict(row, report.trimap_px) for row in report.rows],
        "best": _row_to_dict(report.best, report.trimap_px),
        "improved": report.improved,
        "trimap_px": report.trimap_px,
        "n_tiles": report.n_tiles,
        "n_tiles_labelled": report.n_tiles_labelled,
        "n_pixels": sum(map(sum, report.network.metrics.confusion)),
        "stores": list(report.sources),
        "model_sha256": report.model_sha256,
        "seconds": report.seconds,
    }


def write_search_chart(report: SearchReport, path: Path) -> None:
    """Draw mean IoU over each of the three values, and accuracy near boundaries over the width of the band, to a PNG file."""
    panels = [_axis_panel(report, axis) for axis in AXES if len({getattr(row.crf, axis) for row in report.rows}) > 1]
    curves = ((report.network, "network alone", ORANGE), (report.best, "best CRF", BLUE))
    lines = tuple(Series(points=_curve(row), name=name, colour=colour, dots=False) for row, name, colour in curves if _curve(row))
    if lines:
        panels.append(Panel(title="right pixels near boundaries", x_label="within so many px", series=lines))
    partial = name_partial(path)
    try:
        draw_chart(panels).save(partial, format="PNG")
        publish(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"the chart {path} cannot be written: {error.strerror or error}; check the path and the disk") from error


def _line(cells: tuple[str, ...]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def _values(row: SearchRow) -> tuple[str, ...]:
    return tuple(f"{getattr(row.crf, axis):g}" for axis in AXES)


def _figures(row: SearchRow, trimap_px: int) -> tuple[str, str, str]:
    return _share(row.metrics.mean_iou), _share(row.metrics.accuracy), _share(row.trimap.accuracy(trimap_px))


def _class_lines(report: SearchReport) -> list[str]:
    before, after = report.network.metrics.iou, report.best.metrics.iou
    width = max(len("class"), *map(len, before))
    lines = [f"{'IoU of':<{width}} {'network':>9} {'best':>9}"]
    return lines + [f"{name:<{width}} {_share(before[name]):>9} {_share(after[name]):>9}" for name in before]


def _verdict(report: SearchReport) -> str:
    best = ", ".join(f"{axis} {value}" for axis, value in zip(AXES, _values(report.best), strict=True))
    network, found = report.network.metrics.mean_iou or 0.0, report.best.metrics.mean_iou or 0.0
    if report.improved:
        return f"best: {best}; mIoU {network:.4f} -> {found:.4f}"
    return f"no CRF of the grid beats the network alone: mIoU {network:.4f}, the best ({best}) has {found:.4f}"


def _row_to_dict(row: SearchRow, trimap_px: int) -> dict[str, Any]:
    return {
        "crf": None if row.crf is None else dataclasses.asdict(row.crf),
        **row.metrics.to_dict(),
        "trimap_accuracy": _rounded(row.trimap.accuracy(trimap_px)),
        "trimap_curve": [_rounded(row.trimap.accuracy(width)) for width in range(1, WIDEST_PX + 1)],
    }


def _axis_panel(report: SearchReport, axis: str) -> Panel:
    """Draw every CRF as a dot over its value of ``axis``, the best of each value joined, the network alone as a level."""
    dots = [(getattr(row.crf, axis), row.metrics.mean_iou or 0.0) for row in report.rows]
    tops = {x: max(y for other, y in dots if other == x) for x, _ in sorted(dots)}
    level = report.network.metrics.mean_iou or 0.0
    return Panel(
        title="mean IoU",
        x_label=_X_LABELS[axis],
        series=(
            Series(points=tuple(dots), colour=GREY, line=False),
            Series(points=((min(tops), level), (max(tops), level)), name="network alone", colour=ORANGE, dots=False),
            Series(points=tuple(tops.items()), name="best of each value", colour=BLUE),
        ),
    )


def _curve(row: SearchRow) -> tuple[tuple[float, float], ...]:
    found = [(width, row.trimap.accuracy(width)) for width in range(1, WIDEST_PX + 1)]
    return tuple((float(width), share) for width, share in found if share is not None)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
