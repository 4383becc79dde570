"""What does a person look at after a training? The curves of loss and IoU, and a page of windows with labels and predictions.

::

    loss | mean IoU | IoU of classes        image | labels | prediction
                                            image | labels | prediction
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.chart import BLUE, GREY, ORANGE, Panel, Series, draw_chart
from pipeline.errors import StoreError
from workflows.label_spec import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.network.spec import ClassSpec
    from workflows.training_log import TrainingLog

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_CELL_PX, _GAP_PX, _LEGEND_PX = 320, 8, 28
_NO_LABEL = (255, 255, 255)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """A window, its labels, and what the network says."""

    name: str
    """Of its scene, and what else is to be read on the picture."""
    image: NDArray[np.uint8]
    """(height, width, 3)."""
    labels: NDArray[np.uint8]
    """(height, width), 255: no label."""
    predicted: NDArray[np.uint8]
    """(height, width)."""


def write_curves(path: Path, log: TrainingLog, classes: Sequence[ClassSpec], part: str) -> None:
    """Draw loss and, where ``part`` was measured while training, IoU by step; StoreError where ``path`` cannot be written."""
    losses = log.series("train", "loss")
    panels = [
        Panel(
            title="loss",
            x_label="step",
            series=(
                Series(points=losses, colour=GREY, dots=False, name="batch"),
                Series(points=_smoothed(losses), colour=BLUE, dots=False, name="mean"),
            ),
        )
    ]
    means = log.series(part, "mean_iou", scene="all")
    if means:
        panels.append(Panel(title="mean IoU", x_label="step", series=(Series(points=means, colour=ORANGE, name=part),)))
        panels.append(Panel(title="IoU by class", x_label="step", series=_by_class(log, classes, part)))
    _save(draw_chart(panels), path)


def write_samples(path: Path, samples: Sequence[Sample], classes: Sequence[ClassSpec]) -> None:
    """Draw one row per sample and a legend; StoreError where ``path`` cannot be written."""
    step = _CELL_PX + _GAP_PX
    page = Image.new("RGB", (3 * step + _GAP_PX, len(samples) * step + _GAP_PX + 2 * _LEGEND_PX), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=16)
    for column, title in enumerate(("image", "labels", "prediction")):
        pen.text((_GAP_PX + column * step, 6), title, fill="black", font=font)
    for row, sample in enumerate(samples):
        cells = (sample.image, _coloured(sample.labels, classes), _coloured(sample.predicted, classes))
        for column, cell in enumerate(cells):
            shown = Image.fromarray(cell).resize((_CELL_PX, _CELL_PX), Image.Resampling.NEAREST)
            page.paste(shown, (_GAP_PX + column * step, _LEGEND_PX + row * step))
        _write_name(pen, sample.name, at=(_GAP_PX, _LEGEND_PX + row * step), font=font)
    _draw_legend(pen, classes, top=page.height - _LEGEND_PX, font=font)
    _save(page, path)


def _by_class(log: TrainingLog, classes: Sequence[ClassSpec], part: str) -> tuple[Series, ...]:
    found = ((one, log.series(part, "iou", scene="all", class_name=one.name)) for one in classes)
    return tuple(Series(points=points, colour=one.rgb, name=one.name) for one, points in found if points)


def _smoothed(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """Return means of consecutive points, at most 50 of them."""
    size = max(1, len(points) // 50)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return tuple((group[-1][0], float(np.mean([y for _, y in group]))) for group in groups)


def _coloured(labels: NDArray[np.uint8], classes: Sequence[ClassSpec]) -> NDArray[np.uint8]:
    palette = np.full((256, 3), _NO_LABEL, np.uint8)
    palette[: len(classes)] = [one.rgb for one in classes]
    palette[IGNORED] = _NO_LABEL
    found: NDArray[np.uint8] = palette[labels]
    return found


def _write_name(pen: ImageDraw.ImageDraw, name: str, *, at: tuple[int, int], font: Font) -> None:
    """Write a scene's name into the corner of its image, on a ground that makes it legible anywhere."""
    x, y = at
    pen.rectangle(pen.textbbox((x + 4, y + 4), name, font=font), fill="white")
    pen.text((x + 4, y + 4), name, fill="black", font=font)


def _draw_legend(pen: ImageDraw.ImageDraw, classes: Sequence[ClassSpec], *, top: int, font: Font) -> None:
    x = float(_GAP_PX)
    for one in classes:
        pen.rectangle((x, top, x + 16, top + 16), fill=one.rgb)
        pen.text((x + 22, top - 1), one.name, fill="black", font=font)
        x += 40 + pen.textlength(one.name, font=font)


def _save(image: Image.Image, path: Path) -> None:
    try:
        image.save(path)
    except OSError as error:
        raise StoreError(f"the picture {path} cannot be written ({error}); check folder, rights and space") from error
