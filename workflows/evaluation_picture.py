"""How does an evaluation look? The confusion matrix with its numbers, and where each scene is right and wrong.

::

    title
    subtitle
    matrix            error map
            a    b    +-----------+
      a    93    7    |  red:     |     several pairs: a map each, side by side
      b    21   79    |  wrong    |
    # right  # wrong  # no label or no prediction
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.chart import BLUE, INK
from pipeline.durable_file import discard, name_partial, publish
from pipeline.errors import StoreError
from pipeline.labels import NODATA_LABEL
from pipeline.render import hatch
from workflows.evaluate import MAX_MAPS, MOST_WRONG

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from workflows.confusion import SceneMetrics
    from workflows.evaluate import ErrorMap, Evaluation

_PAPER, _MUTED, _LINE = (255, 255, 255), (101, 109, 118), (208, 215, 222)
_RIGHT, _WRONG = (205, 222, 236), (196, 30, 30)
_BLANK, _TEXT, _TITLE, _SMALL = 36, 18, 26, 14
_MATRIX_PX = 620
_MAPS_PX = 1200, 870
"""(height, width) of the place for error maps, px."""
_MAX_CELL_PX, _MAX_ZOOM = 84, 8
_MAX_CLASSES = 24
"""Classes in the matrix, at most; the most frequent ones where there are more."""
_GAP = 20
_LEGEND_PX = 640
"""Least width of the place for maps: the legend stands below."""


def map_room(n_pairs: int) -> tuple[int, int]:
    """Return the (height, width) that one error map of an evaluation of ``n_pairs`` may take, px."""
    n_cols = _n_cols(n_pairs)
    n_rows = math.ceil(min(n_pairs, MAX_MAPS) / n_cols)
    caption = _TEXT * 2
    return (_MAPS_PX[0] - n_rows * (caption + _GAP)) // n_rows, (_MAPS_PX[1] - (n_cols - 1) * _GAP) // n_cols


def check_picture(path: Path) -> None:
    """Raise StoreError where no picture can be written, before hours of counting."""
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else "lies in a directory that does not exist"
        raise StoreError(f"the picture {path} {what}; give the path of a .png file in a directory that is there")


def write_picture(found: Evaluation, path: Path) -> None:
    """Draw the evaluation to a PNG file; raises StoreError where it cannot be written."""
    partial = name_partial(path)
    try:
        draw_evaluation(found).save(partial, format="PNG")
        publish(partial, path)
    except OSError as error:
        discard(partial)
        raise StoreError(
            f"the picture {path} cannot be written: {error.strerror or error}; check the path and the disk"
        ) from error


def draw_evaluation(found: Evaluation) -> Image.Image:
    """Return the picture, RGB, at most 1600 px wide."""
    matrix = _draw_matrix(found.pooled.metrics)
    maps = _draw_maps(found)
    top = _BLANK + _TITLE + _TEXT + _GAP * 2
    height = top + max(matrix.height, maps.height) + _GAP + _TEXT + _BLANK
    image = Image.new("RGB", (3 * _BLANK + matrix.width + maps.width, height), _PAPER)
    pen = ImageDraw.Draw(image)
    _write(pen, (_BLANK, _BLANK), _title(found), size=_TITLE)
    _write(pen, (_BLANK, _BLANK + _TITLE + _GAP // 2), _subtitle(found), size=_TEXT, color=_MUTED)
    image.paste(matrix, (_BLANK, top))
    image.paste(maps, (2 * _BLANK + matrix.width, top))
    _draw_legend(image, pen, (2 * _BLANK + matrix.width, height - _BLANK - _TEXT), found)
    return image


def _title(found: Evaluation) -> str:
    return found.pooled.metrics.scene if len(found.pairs) == 1 else f"{len(found.pairs)} pairs"


def _subtitle(found: Evaluation) -> str:
    metrics, interval = found.pooled.metrics, found.pooled.intervals.mean_iou
    spread = "" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})"
    near = found.pooled.trimap.accuracy(found.trimap_px)
    boundary = "" if near is None else f", {near:.1%} within {found.trimap_px} px of a boundary"
    return (
        f"mIoU {metrics.mean_iou or 0:.3f}{spread}; right {metrics.accuracy or 0:.1%}{boundary}; {metrics.n_pixels / 1e6:.2f} Mpx"
    )


# The matrix


def _draw_matrix(metrics: SceneMetrics) -> Image.Image:
    """Draw the matrix in per cent of each row: what became of the pixels of a true class."""
    counts = metrics.matrix
    shown = _most_frequent(counts)
    names = [metrics.classes[i] for i in shown]
    left = min(200, max(_text_width(name, _TEXT) for name in names) + _GAP)
    side = min(_MAX_CELL_PX, (_MATRIX_PX - left) // len(names))
    top = _TEXT * 3 + min(140, max(_text_width(name, _TEXT) for name in names) + _GAP)
    omitted = len(metrics.classes) - len(names)
    image = Image.new("RGB", (_MATRIX_PX, top + side * len(names) + _TEXT * 3), _PAPER)
    pen = ImageDraw.Draw(image)
    _write(pen, (0, 0), "Of each true class (row), per cent predicted as (column)", size=_TEXT)
    for at, name in enumerate(names):
        row, col = top + at * side, left + at * side
        _write(pen, (left - 10, row + side // 2), _fitting(name, left - 10), size=_TEXT, anchor="rm")
        _write_upright(image, _fitting(name, 130), (col + side // 2, top - 8))
    size = max(9, min(_TEXT + 2, round(side * 0.36)))
    for i, true in enumerate(shown):
        n_true = int(counts[true].sum())
        for j, predicted in enumerate(shown):
            share = counts[true, predicted] / n_true if n_true else math.nan
            _draw_cell(pen, (left + j * side, top + i * side, side), share, size)
    notes = ["-: no pixel has this label"] * (not counts[shown].any(axis=1).all())
    notes += [f"the {omitted} least frequent classes are left out"] * bool(omitted)
    _write(pen, (0, top + side * len(names) + _TEXT), "; ".join(notes), size=_SMALL, color=_MUTED)
    return image


def _draw_cell(pen: ImageDraw.ImageDraw, place: tuple[int, int, int], share: float, size: int) -> None:
    left, top, side = place
    weight = 0.0 if math.isnan(share) else share
    fill = tuple(round(paper + (blue - paper) * weight) for paper, blue in zip(_PAPER, BLUE, strict=True))
    pen.rectangle((left, top, left + side - 1, top + side - 1), fill=fill, outline=_LINE)
    text = "-" if math.isnan(share) else _percent(share)
    _write(pen, (left + side / 2, top + side / 2), text, size=size, color=_PAPER if weight > 0.55 else INK, anchor="mm")


def _percent(share: float) -> str:
    """Return a share in per cent, without decimals.

    Examples
    --------
    >>> _percent(0.123), _percent(0.001), _percent(0.0)
    ('12', '<1', '0')
    """
    return "<1" if 0 < share < 0.005 else f"{100 * share:.0f}"


def _most_frequent(counts: NDArray[np.int64]) -> list[int]:
    """Return the classes that are shown, in their order."""
    order = np.argsort(-(counts.sum(axis=0) + counts.sum(axis=1)), kind="stable")
    return sorted(order[:_MAX_CLASSES].tolist())


# The maps


def _draw_maps(found: Evaluation) -> Image.Image:
    """Draw the error maps in a grid, each with its name."""
    room, n_cols, captions = map_room(len(found.pairs)), _n_cols(len(found.pairs)), len(found.pairs) > 1
    maps = [_fit(_paint(one), room) for one in found.maps]
    rows = [maps[first : first + n_cols] for first in range(0, len(maps), n_cols)]
    caption = _TEXT * 2
    height = sum(max(one.height for one in row) + caption + _GAP for row in rows) - _GAP
    width = max(_LEGEND_PX, *((len(row) - 1) * (room[1] + _GAP) + row[-1].width for row in rows))
    image = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(image)
    top = 0
    for n_row, row in enumerate(rows):
        for n_col, one in enumerate(row):
            at = n_row * n_cols + n_col
            left = n_col * (room[1] + _GAP)
            metrics = found.pairs[at][1].metrics
            text = f"mIoU {metrics.mean_iou or 0:.3f}  {metrics.scene}" if captions else "Where it is wrong"
            _write(pen, (left, top), _fitting(text, room[1]), size=_TEXT)
            image.paste(one, (left, top + caption))
            pen.rectangle((left, top + caption, left + one.width - 1, top + caption + one.height - 1), outline=_LINE)
        top += max(one.height for one in row) + caption + _GAP
    return image


def _paint(error_map: ErrorMap) -> Image.Image:
    """Paint each cell between the colours of right and wrong; hatched where nothing was counted."""
    share = (error_map.wrong.astype(np.float32) / MOST_WRONG)[..., None]
    right, wrong = np.array(_RIGHT, np.float32), np.array(_WRONG, np.float32)
    painted = np.rint(right + (wrong - right) * np.minimum(share, 1)).astype(np.uint8)
    nothing = error_map.wrong == NODATA_LABEL
    painted[nothing] = hatch(nothing.shape)[nothing]
    return Image.fromarray(painted)


def _fit(image: Image.Image, room: tuple[int, int]) -> Image.Image:
    """Repeat the pixels of a small map."""
    zoom = max(1, min(_MAX_ZOOM, room[0] // image.height, room[1] // image.width))
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _draw_legend(image: Image.Image, pen: ImageDraw.ImageDraw, at: tuple[int, int], found: Evaluation) -> None:
    x, y = at
    cell_px = max(one.cell_px for one in found.maps)
    mixed = f"wrong (cells of {'up to ' * (len(found.maps) > 1)}{cell_px} px mix both)" if cell_px > 1 else "wrong"
    rest = len(found.pairs) - len(found.maps)
    for color, text in ((_RIGHT, "right"), (_WRONG, mixed), (None, "no label or no prediction")):
        if color is None:
            image.paste(Image.fromarray(hatch((_TEXT, _TEXT))), (x, y))
        pen.rectangle((x, y, x + _TEXT, y + _TEXT), fill=color, outline=_MUTED)
        _write(pen, (x + _TEXT + 8, y + _TEXT // 2), text, size=_SMALL, anchor="lm")
        x += _TEXT + 8 + _text_width(text, _SMALL) + _GAP
    if rest:
        _write(pen, (x, y + _TEXT // 2), f"and {rest} more pairs", size=_SMALL, color=_MUTED, anchor="lm")


def _n_cols(n_pairs: int) -> int:
    return math.ceil(math.sqrt(min(n_pairs, MAX_MAPS)))


# Text


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    *,
    size: int,
    color: tuple[int, ...] = INK,
    anchor: str = "la",
) -> None:
    pen.text(at, text, fill=color, font=_font(size), anchor=anchor)


def _write_upright(image: Image.Image, text: str, at: tuple[int, int]) -> None:
    """Write ``text`` from the bottom to the top, ending in the middle above ``at``."""
    plate = Image.new("RGB", (_text_width(text, _TEXT) + 2, _TEXT + 6), _PAPER)
    _write(ImageDraw.Draw(plate), (0, 0), text, size=_TEXT)
    turned = plate.rotate(90, expand=True)
    image.paste(turned, (at[0] - turned.width // 2, at[1] - turned.height))


def _fitting(text: str, width_px: int) -> str:
    """Return the text, shortened where it is too wide."""
    if _text_width(text, _TEXT) <= width_px:
        return text
    n_kept = next((n for n in range(len(text) - 1, 0, -1) if _text_width(f"{text[:n]}…", _TEXT) <= width_px), 1)
    return f"{text[:n_kept]}…"


def _text_width(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
